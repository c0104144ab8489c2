"""Noise levels, the normalised embedding space, timestep tokens: what speculative Jacobi-denoising decoding (2510.08994) adds."""

from .embedding import EmbeddingStatistics
from .levels import NoiseLevels
from .settings import Denoising

__all__ = ["Denoising", "EmbeddingStatistics", "NoiseLevels"]
