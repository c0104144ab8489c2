"""Triton kernels of the ops; nothing outside this folder imports Triton.

``import sjd2_kernels`` works without Triton: the modules here are imported when an op runs on the ``triton`` back-end, and not before.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

__all__ = ["INTERPRETED", "fused_backends", "triton_obstacle"]

_INSTALLED = find_spec("triton") is not None

#: Kernels run on the CPU, one program after another, in Triton's interpreter. Triton reads the variable when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_obstacle(*tensors: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot run on ``tensors``; ``None`` if they can."""
    if not _INSTALLED:
        return "Triton is not installed"
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return "the kernels compute in float32, and float64 was given"
        if tensor.device.type != "cuda" and not INTERPRETED:
            return f"Triton needs a GPU, and a tensor is on {tensor.device.type}"
    return None


def fused_backends(*tensors: torch.Tensor, obstacle: str | None = None) -> dict[str, str | None]:
    """The back-ends of an op with a definition and Triton kernels, for ``resolve_backend``: kernels first on a GPU, the definition elsewhere.

    ``obstacle`` is a reason of the op's own why its kernels cannot run.
    """
    obstacle = obstacle or triton_obstacle(*tensors)
    if tensors[0].device.type == "cuda":
        return {"triton": obstacle, "torch": None}
    return {"torch": None, "triton": obstacle}
