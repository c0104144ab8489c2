"""The inputs of a denoising forward behind the newest committed token, and what each sees.

    window       x_0 … x_{W−2}, clean or noisy, causal; row j predicts slot j
    branches     for s = 0 … N−1: noise in the place of x_s, then x_{s+1} … x_{s+L−1}; they see the window before slot s and their own branch
    timesteps    one token per level, which sees itself and is seen by the inputs of its level

A branch is made for the case that slot s is the first to be rejected. Every slot behind it was then predicted from a token that proved
wrong, and is likely to be rejected next. Its branch has predicted the slots s+1 … s+L knowing that slot s is unknown: noise is what
speculative Jacobi-denoising decoding (2510.08994) feeds for a token it knows nothing of. A draft may be drawn from any distribution
that is on record, so nothing changes in the law of the result.
"""

from __future__ import annotations

import torch

from ..cache import ExtraColumns

__all__ = ["WindowRows"]


class WindowRows:
    """Rows of logits and columns of input for a window of W slots.

    Args:
        window: W.
        branches, length: N and L; ``N + L <= W``.
        levels: level K of pure noise, which is also the number of timestep tokens; 0 for none.

    Attributes:
        rows: W + N·L, rows of logits that are of use.
        slot: int64 ``[W + N·L]``, the slot that each row predicts.
        fed: int64 ``[N·L]``, the slot that each input of a branch stands for.
        noise: bool ``[N·L]``, the inputs that are noise.
    """

    def __init__(self, window: int, branches: int, length: int, levels: int, device: torch.device):
        self.window, self.branches, self.length, self.levels = window, branches, length, levels
        branch = torch.arange(branches, device=device).repeat_interleave(length)
        step = torch.arange(length, device=device).repeat(branches)
        self.fed, self.noise = branch + step, step == 0
        self.slot = torch.cat([torch.arange(window, device=device), self.fed + 1])
        self.rows = window + branches * length
        position = torch.full((levels,), -1, device=device)
        self._offset = torch.cat([self.fed + 1, position])  # input 0 is the newest committed token, the one of slot j is input j + 1
        self._prefix = torch.cat([torch.ones_like(self.fed, dtype=torch.bool), position >= 0])
        inputs = self.rows + levels
        visible = torch.eye(inputs, dtype=torch.bool, device=device)
        visible[:window, :window].logical_or_(torch.ones(window, window, dtype=torch.bool, device=device).tril())
        visible[window : self.rows, :window] = torch.arange(window, device=device) <= branch[:, None]
        visible[window : self.rows, window : self.rows] = (branch[:, None] == branch) & (step <= step[:, None])
        self._visible = visible

    def columns(self, levels: torch.Tensor) -> ExtraColumns | None:
        """What the cache has to know of the inputs whose first W have ``levels`` (int64 ``[R, W]``, 0: clean)."""
        if not len(self._offset):
            return None
        visible = self._visible.expand(len(levels), -1, -1)
        if self.levels:
            branches = (self.levels * self.noise.long()).expand(len(levels), -1)
            of_level = torch.arange(1, self.levels + 1, device=levels.device)
            own = torch.cat([levels, branches], 1)[..., None] == of_level
            own = torch.cat([own, torch.eye(self.levels, dtype=torch.bool, device=levels.device).expand(len(levels), -1, -1)], 1)
            visible = torch.cat([visible[..., : self.rows], own], 2)
        return ExtraColumns(self._offset, self._prefix, visible)

    def source(self, committed: torch.Tensor) -> torch.Tensor:
        """The row that predicted each slot of the next window, int64 ``[B, W]``, given ``committed [B]`` tokens of this one.

        It is the branch of the slot that was rejected as far as that reaches, and the window's own row behind that.
        """
        slot = torch.arange(self.window, device=committed.device)
        row = slot + committed[:, None]
        branched = (committed[:, None] <= self.branches) & (slot < self.length) & (committed[:, None] > 0)
        return torch.where(branched, self.window + (committed[:, None] - 1) * self.length + slot, row)
