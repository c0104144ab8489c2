"""Argument checks shared by the ops: every error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["check_integer", "check_shape"]


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``tensor`` has exactly ``shape``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def check_integer(name: str, tensor: torch.Tensor) -> None:
    """Raise ``TypeError`` unless ``tensor`` is int64."""
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {tensor.dtype}")
