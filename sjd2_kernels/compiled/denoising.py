"""``denoise`` in C++, for tensors on a CPU: one pass, and noise for the slots that are born alone. ``csrc/denoising.h`` is its interface.

Its noise has the words of the definition, and logarithms and cosines that may differ from PyTorch's in the last bit.
"""

from __future__ import annotations

import torch

from . import module
from .tensors import Addresses, described

__all__ = ["denoise_compiled"]


def denoise_compiled(
    embeds: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    *,
    tokens: torch.Tensor,
    committed: torch.Tensor,
    levels: torch.Tensor,
    next_levels: torch.Tensor,
    seeds: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """See :func:`sjd2_kernels.denoise`.

    Raises:
        ValueError: a token that is no id, or more committed slots than there are.
    """
    assert module is not None
    out, addresses = torch.empty(embeds.shape, dtype=embeds.dtype), Addresses()
    mean, std, levels, next_levels = (tensor.to(torch.float32) for tensor in (mean, std, levels, next_levels))
    bad_row = module.cpu_denoise(
        described(embeds),
        described(weight[None]),
        addresses(mean, std, tokens, committed, levels, next_levels, seeds, position),
        *addresses(out),
        torch.get_num_threads(),
    )
    if bad_row >= 0:
        legal = f"ids in [0, {len(weight)}), and at most {embeds.shape[1]} committed slots"
        raise ValueError(f"tokens, committed: expected {legal}, got otherwise in row {bad_row}")
    return out
