"""One small file per model family: prompt, embeddings, forward, token layout, pixels. Nothing else in the package names a model."""

from .base import Adapter, SamplingDefaults
from .registry import load_adapter

__all__ = ["Adapter", "SamplingDefaults", "load_adapter"]
