"""How many tokens each row has, and which of them are known before decoding starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["TokenLayout"]


@dataclass(frozen=True)
class TokenLayout:
    """The token sequence of B images.

    Attributes:
        forced: int64 ``[B, N]``: the id of a structural token (end of line …), −1 where the model decides.
        lengths: int64 ``[B]``, tokens per row, at most N.
        row_stride: distance from a token to the one below it in the image, end-of-line tokens included; 0 if there is no grid.
        end_id: an id that ends a row early, −1 for none.
    """

    forced: torch.Tensor
    lengths: torch.Tensor
    row_stride: int = 0
    end_id: int = -1

    @classmethod
    def grid(cls, batch_size: int, height: int, width: int, *, device: torch.device | str = "cpu") -> TokenLayout:
        """B images of ``height`` × ``width`` tokens in raster order, none of them structural."""
        count = height * width
        forced = torch.full((batch_size, count), -1, dtype=torch.int64, device=device)
        return cls(forced, torch.full((batch_size,), count, dtype=torch.int64, device=device), row_stride=width)

    def forced_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Forced ids at ``positions`` (int64 ``[B, W]``). Positions past a row's end are forced to 0: nothing depends on them."""
        inside = self.forced.gather(1, positions.clamp(max=self.forced.shape[1] - 1))
        return torch.where(positions < self.lengths[:, None], inside, 0)
