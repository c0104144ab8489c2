"""The normalised embedding space in which noise is added (2510.08994)."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["EmbeddingStatistics"]


class EmbeddingStatistics(NamedTuple):
    """Mean and standard deviation per dimension, ``[D]`` each, of the embeddings of the image tokens.

    With ``mean = 0`` and ``std = 1`` nothing is normalised: the ablation in which denoising fails.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> EmbeddingStatistics:
        """Statistics of embedding rows ``[V, D]``."""
        rows = rows.detach().to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        return cls(rows.mean(0), rows.std(0, correction=0).clamp(min=1e-6))

    @classmethod
    def identity_like(cls, other: EmbeddingStatistics) -> EmbeddingStatistics:
        """No normalisation."""
        return cls(torch.zeros_like(other.mean), torch.ones_like(other.std))

    def normalise(self, embeddings: torch.Tensor) -> torch.Tensor:
        """``(m − mean)/std`` of ``[..., D]``."""
        return (embeddings.to(self.mean.dtype) - self.mean) / self.std

    def denormalise(self, normalised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``std·e + mean`` of ``[..., D]`` in the model's dtype."""
        return (normalised * self.std + self.mean).to(dtype)
