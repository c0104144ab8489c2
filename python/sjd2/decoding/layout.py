"""How many tokens each row has, and which of them are known before decoding starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

__all__ = ["TokenLayout"]


@dataclass(frozen=True)
class TokenLayout:
    """The token sequence of B images.

    Attributes:
        forced: int64 ``[B, N]``: the id of a structural token (end of line …), −1 where the model decides. Ids from V on stand for tokens
            outside the model's V image ids, see ``DecodableModel.embed``.
        lengths: int64 ``[B]``, tokens per row, at most N.
        row_stride: distance from a token to the one below it in the image, end-of-line tokens included; 0 if there is no grid.
        end_id: an id that ends a row early, −1 for none.
        places: int64 ``[A, M]``, M ≥ N: positions of the tokens along A rotary axes, counted from the first one; ``None``: 0, 1, 2 …
    """

    forced: torch.Tensor
    lengths: torch.Tensor
    row_stride: int = 0
    end_id: int = -1
    places: torch.Tensor | None = None

    @classmethod
    def grid(
        cls,
        batch_size: int,
        height: int,
        width: int,
        *,
        row_end: Sequence[int] = (),
        end: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> TokenLayout:
        """B images of ``height`` × ``width`` tokens in raster order, with the structural ids ``row_end`` behind every row and ``end`` behind all."""
        one = ([-1] * width + list(row_end)) * height + list(end)
        forced = torch.tensor(one, dtype=torch.int64, device=device).repeat(batch_size, 1)
        return cls(forced, torch.full((batch_size,), len(one), dtype=torch.int64, device=device), row_stride=width + len(row_end))

    def select(self, rows: torch.Tensor) -> TokenLayout:
        """The layout of some of the rows, int64 ``[B']``."""
        return replace(self, forced=self.forced[rows], lengths=self.lengths[rows])

    def forced_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Forced ids at ``positions`` (int64 ``[B, W]``). Positions past a row's end are forced to 0: nothing depends on them."""
        inside = self.forced.gather(1, positions.clamp(max=self.forced.shape[1] - 1))
        return torch.where(positions < self.lengths[:, None], inside, 0)
