"""Timestep tokens: what tells the model how noisy a slot is, without new weights.

One per level, appended behind the window (2510.08994 leaves open whether per slot or per level; the published cost suggests levels).
Each sees only itself and is seen only by the slots of its level. Its input is the sinusoidal encoding of the level's time, brought to
the statistics of the embeddings.
"""

from __future__ import annotations

import math

import torch

from .embedding import EmbeddingStatistics
from .levels import NoiseLevels

__all__ = ["TIMESTEP_POSITION", "timestep_embeddings"]

#: Their position: one for all, so that nothing depends on the window or on where in the image it stands.
TIMESTEP_POSITION = 0

_HIGHEST, _LOWEST = 1000.0, 1.0


def timestep_embeddings(levels: NoiseLevels, statistics: EmbeddingStatistics, dtype: torch.dtype) -> torch.Tensor:
    """Inputs ``[K, D]`` of the timestep tokens of levels 1 … K.

    Sines and cosines of t at D/2 frequencies, spaced geometrically between 1000 and 1; each encoding normalised to mean 0 and variance 1 over
    its dimensions, then de-normalised like an embedding.
    """
    mean = statistics.mean
    half = -(-mean.shape[0] // 2)
    exponents = torch.arange(half, dtype=mean.dtype, device=mean.device) / max(1, half - 1)
    frequencies = _HIGHEST * torch.exp(exponents * math.log(_LOWEST / _HIGHEST))
    times = torch.tensor(levels.times[1:], dtype=mean.dtype, device=mean.device)
    angles = times[:, None] * frequencies
    encoding = torch.cat([angles.sin(), angles.cos()], dim=1)[:, : mean.shape[0]]
    encoding = (encoding - encoding.mean(1, keepdim=True)) / encoding.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    return statistics.denormalise(encoding, dtype)
