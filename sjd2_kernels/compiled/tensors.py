"""Tensors as the compiled module takes them."""

from __future__ import annotations

import torch

__all__ = ["Addresses", "described"]

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def described(tensor: torch.Tensor) -> tuple[int, ...]:
    """Address, type, sizes and strides of a tensor with three axes."""
    return (tensor.data_ptr(), _TYPES[tensor.dtype], *tensor.shape, *tensor.stride())


class Addresses:
    """Of tensors made contiguous, which live as long as this does."""

    def __init__(self) -> None:
        self._alive: list[torch.Tensor] = []

    def __call__(self, *tensors: torch.Tensor | None) -> tuple[int, ...]:
        """An address for each, 0 for none."""
        contiguous = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        self._alive += [tensor for tensor in contiguous if tensor is not None]
        return tuple(0 if tensor is None else tensor.data_ptr() for tensor in contiguous)
