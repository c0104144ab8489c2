"""First drafts of the slots that enter a window, each with an honest record of the distribution it was drawn from.

``none``        no usable q: the left token repeated, never kept
``uniform``     uniform over the allowed ids
``left``        a fresh draw from p of the slot to the left, with that p as q
``above``       a fresh draw from p of the slot above in the image grid, with that p as q
``left-copy``   the left token itself; it is known, so its q is one-hot
``above-copy``  the token above itself, likewise

Where ``above`` has no slot in the window the token above, if there is one, is copied; in the first image row both take left. What is left of
an image row is its end-of-line token, which tells nothing: there ``left`` means the one before it.
"""

from __future__ import annotations

import torch

from sjd2_kernels import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, LogitsProcessing, Purpose, sample
from sjd2_kernels.random import uniforms

from .presets import Initialisation

__all__ = ["fresh_drafts", "uniform_drafts"]


def uniform_drafts(
    processing: LogitsProcessing, vocab_size: int, seeds: torch.Tensor, iteration: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts ``[B, W]`` uniform over the allowed ids, and their ``q_row``."""
    uniform = uniforms(seeds, Purpose.DRAFT, iteration, positions, dtype=torch.float64)[..., 0]
    if processing.allowed is None:
        drafts = (uniform * vocab_size).long()
    else:
        # The n-th allowed id is the first whose running count exceeds n.
        running = processing.allowed.cumsum(0)
        drafts = torch.searchsorted(running, (uniform * running[-1]).long(), right=True)
    return drafts, torch.full_like(positions, Q_UNIFORM)


def _draw(
    last: LastForward,
    processing: LogitsProcessing,
    rows: torch.Tensor | slice,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """A fresh draw for every slot from p of slot ``rows[b, j]`` of the last forward, or of the one slot that ``rows[b, 0]`` or a slice names."""
    batch = slice(None) if isinstance(rows, slice) else torch.arange(len(rows), device=rows.device)[:, None]
    uncond = None if last.logits_uncond is None else last.logits_uncond[batch, rows]
    return sample(last.logits[batch, rows], uncond, processing, seeds=seeds, iteration=iteration, position=positions)


def fresh_drafts(
    initialisation: Initialisation,
    *,
    last: LastForward,
    processing: LogitsProcessing,
    updated: torch.Tensor,
    structural: bool,
    tokens: torch.Tensor,
    start: torch.Tensor,
    positions: torch.Tensor,
    row_stride: int,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts and ``q_row``, int64 ``[B, W]``, for slots at ``positions``; the caller uses those that are fresh.

    Args:
        last: the forward that just ended.
        updated: int64 ``[B, W]``, its updated tokens, of positions ``start + (0 … W−1)``.
        structural: whether some of the tokens are no image ids; the drafts all are.
        tokens: int64 ``[B, M]``, committed tokens by position (valid below ``start``).
        start: int64 ``[B]``, position of its slot 0.
        positions: int64 ``[B, W]``, of the next window.
        row_stride: see ``TokenLayout``.
    """
    vocab_size = last.logits.shape[-1]
    if initialisation == "uniform":
        return uniform_drafts(processing, vocab_size, seeds, iteration, positions)
    right_end = updated.shape[1] - 1
    left, left_slot = updated[:, right_end:], torch.full_like(positions, right_end)
    left_rows: torch.Tensor | slice = slice(right_end, right_end + 1)
    if structural:
        left_rows = torch.where(left >= vocab_size, max(right_end - 1, 0), right_end)
        left, left_slot = updated.gather(1, left_rows).clamp(max=vocab_size - 1), left_rows.expand_as(positions)
    left = left.expand_as(positions)
    if initialisation == "none":
        return left, torch.full_like(positions, Q_NONE)
    if initialisation == "left-copy":
        return left, torch.full_like(positions, Q_POINT)
    if initialisation == "left":
        return _draw(last, processing, left_rows, seeds, iteration, positions), left_slot
    above = positions - row_stride if row_stride else torch.full_like(positions, -1)
    slot = above - start[:, None]
    # Above a slot there may be another fresh one, without a p, when more than a whole image row was committed: then take left.
    in_window, committed = (slot >= 0) & (slot <= right_end), (above >= 0) & (slot < 0)
    copied = torch.where(
        in_window,
        updated.gather(1, slot.clamp(0, right_end)),
        torch.where(committed, tokens.gather(1, above.clamp(0, tokens.shape[1] - 1)), left),
    )
    if structural:
        copied = torch.where(copied < vocab_size, copied, left)
    if initialisation == "above-copy":
        return copied, torch.full_like(positions, Q_POINT)
    rows = torch.where(in_window, slot, left_slot)
    drawn = _draw(last, processing, rows, seeds, iteration, positions)
    return torch.where(committed, copied, drawn), torch.where(committed, Q_POINT, rows)
