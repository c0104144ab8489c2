"""Drawing an id from unnormalised masses with one uniform."""

from __future__ import annotations

import torch

__all__ = ["inverse_cdf"]


def inverse_cdf(masses: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first id whose cumulative mass exceeds ``uniform`` times the total.

    Args:
        masses: ``[..., V]``, non-negative, with a positive sum.
        uniform: in (0, 1), of a shape that broadcasts against ``[...]``.

    Returns:
        int64 of the broadcast shape; never an id of zero mass, as long as the running sum does not fall.
    """
    cumulative = masses.cumsum(-1)
    total = cumulative[..., -1:]
    # The second count is the id at which the sum reaches its total: the largest id that may be returned.
    below = (cumulative <= uniform[..., None] * total).sum(-1)
    return torch.minimum(below, (cumulative < total).sum(-1))
