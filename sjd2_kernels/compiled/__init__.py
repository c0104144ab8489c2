"""The compiled module ``sjd2_kernels._C`` (C++ and CUDA, without PyTorch): whether it is there, and what tensors it can take.

Its cache ops are called from ``kv_cache/native.py``, the others from ``sampling.py`` and ``denoising.py`` here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from ..fused import triton_obstacle

__all__ = ["describe", "module", "obstacle", "op_backends"]

module: ModuleType | None
try:
    module = import_module("sjd2_kernels._C")
except ImportError as error:
    module = None
    # setup.py leaves this note where it could not build the module.
    _note = Path(__file__).parents[1] / "_C_not_built.txt"
    _missing = _note.read_text().strip() if _note.is_file() else str(error)


def obstacle(device_type: str) -> str | None:
    """Why the module's cache ops cannot run on a device of this type, ``None`` if they can."""
    if module is None:
        return f"sjd2_kernels._C is not there: {_missing}"
    if device_type == "cuda":
        return None if module.cuda_version else "sjd2_kernels._C was built without CUDA (SJD2_CUDA=1 demands it)"
    return None if device_type == "cpu" else f"it has no code for {device_type}"


def describe() -> str:
    """One line for ``sjd2 info``."""
    if module is None:
        return f"not built: {_missing}"
    return f"{module.compiler}, " + (f"CUDA {module.cuda_version} for {module.cuda_architectures}" if module.cuda_version else "no CUDA")


def _cpu_obstacle(*tensors: torch.Tensor) -> str | None:
    """Why the module's ``verify``, ``sample`` and ``denoise`` cannot run on ``tensors``."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it works on a CPU, and a tensor is on {tensor.device.type}"
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it computes in float32, and {str(tensor.dtype).removeprefix('torch.')} was given"
    return obstacle("cpu")


def op_backends(*tensors: torch.Tensor) -> dict[str, str | None]:
    """Back-ends of ``verify``, ``sample`` and ``denoise`` for ``resolve_backend``: Triton kernels first on a GPU, compiled code on a CPU."""
    obstacles = {"triton": triton_obstacle(*tensors), "cpp": _cpu_obstacle(*tensors), "torch": None}
    order = ("triton", "torch", "cpp") if tensors[0].device.type == "cuda" else ("cpp", "torch", "triton")
    return {name: obstacles[name] for name in order}
