"""Attention of a window of inputs over a cache whose rows have their own lengths."""

from .op import window_attention
from .reference import window_mask

__all__ = ["window_attention", "window_mask"]
