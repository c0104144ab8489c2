"""The definition of ``denoise`` in PyTorch: the ground truth that every other back-end is tested against."""

from __future__ import annotations

import torch

from ..random import normal_noise

__all__ = ["denoise_reference"]


def denoise_reference(
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
    """See :func:`sjd2_kernels.denoise`. Computes in float32, in float64 for float64 embeddings."""
    dtype = torch.float64 if embeds.dtype == torch.float64 else torch.float32
    _, window, width = embeds.shape
    slot = torch.arange(window, device=embeds.device)
    source = slot + committed[:, None]
    fresh = source >= window
    source = source.clamp(max=window - 1)
    mean, std = mean.to(dtype), std.to(dtype)
    noise = normal_noise(seeds, position[:, None] + slot, width, dtype=dtype)
    before = embeds.gather(1, source[..., None].expand(-1, -1, width)).to(dtype)
    noisy = torch.where(fresh[..., None], std * noise + mean, before)
    level = torch.where(fresh, 1.0, levels.gather(1, source)).to(dtype)
    next_level = next_levels.to(dtype)
    clean = weight[tokens].to(embeds.dtype)
    is_clean = (next_level <= 0) | (level <= 0)
    share = (next_level / torch.where(is_clean, 1.0, level))[..., None]
    target = clean.to(dtype)
    stepped = (share * noisy + (1 - share) * target).to(embeds.dtype)
    return torch.where(is_clean[..., None], clean, stepped)
