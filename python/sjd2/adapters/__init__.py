"""One small file per model family: prompt, embeddings, forward, token layout, pixels. Nothing else in the package names a model."""

from .base import Adapter, ImageRequest, SamplingDefaults
from .registry import EMBEDDED_MODEL, load_adapter

__all__ = ["EMBEDDED_MODEL", "Adapter", "ImageRequest", "SamplingDefaults", "load_adapter"]
