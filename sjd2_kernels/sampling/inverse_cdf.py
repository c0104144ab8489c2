"""Drawing an id from unnormalised masses with one uniform, in the block order that every back-end follows.

Ids are summed in blocks of :data:`BLOCK`. The uniform picks a block by the running sum over the block sums, then an id by the running sum
inside that block. A block is short enough for float32, and a fused kernel has to look only at one block again. Inside a block the order of
additions is each back-end's own; it moves a border by a few units in the last place of the block's sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["BLOCK", "inverse_cdf"]

#: Ids per block of a sum.
BLOCK = 1024


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose running sum exceeds ``target``, at most the one at which the sum reaches its total."""
    below = (running <= target[..., None]).sum(-1)
    return torch.minimum(below, (running < running[..., -1:]).sum(-1))


def inverse_cdf(masses: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first id whose cumulative mass exceeds ``uniform`` times the total.

    Args:
        masses: ``[..., V]``, non-negative, with a positive sum.
        uniform: in (0, 1), of a shape that broadcasts against ``[...]``.

    Returns:
        int64 of the broadcast shape; never an id of zero mass, as long as the running sum does not fall.
    """
    vocab = masses.shape[-1]
    if vocab <= BLOCK:
        running = masses.cumsum(-1)
        return _first_above(running, uniform * running[..., -1])
    blocked = F.pad(masses, (0, -vocab % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocked.sum(-1)
    running = sums.cumsum(-1)
    target = uniform * running[..., -1]
    shape = target.shape
    running = running.expand(*shape, -1)
    block = _first_above(running, target)
    before = torch.where(block > 0, running.gather(-1, (block - 1).clamp(min=0)[..., None]).squeeze(-1), 0)
    inside = blocked.expand(*shape, -1, -1).gather(-2, block[..., None, None].expand(*shape, 1, BLOCK)).squeeze(-2)
    return block * BLOCK + _first_above(inside.cumsum(-1), target - before)
