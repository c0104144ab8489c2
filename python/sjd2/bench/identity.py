"""What a benchmark's figures were taken with: the model's weights, the code, the device."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import torch
from torch import nn

import sjd2_kernels
from sjd2_kernels import compiled

__all__ = ["code_digest", "device_name", "fingerprint"]

#: Of the package ``sjd2``, what the tokens of a run depend on; the rest trains, judges and prints.
_DECODES = ("adapters", "attention", "cache", "decoding", "denoising", "pipeline.py", "tiny_scenes/text.py")


def fingerprint(model: nn.Module) -> str:
    """Tells models apart, wherever they were loaded from: names and shapes of all parameters, and some of the numbers of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // 64)]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def code_digest() -> str:
    """Tells versions of the code that decodes apart, committed or not, compiled or not."""
    package = Path(__file__).parent.parent
    files = list(Path(sjd2_kernels.__file__).parent.rglob("*.py"))
    if compiled.module is not None and compiled.module.__file__ is not None:
        files.append(Path(compiled.module.__file__))
    for name in _DECODES:
        files += [package / name] if name.endswith(".py") else (package / name).rglob("*.py")
    parts = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def device_name(device: torch.device) -> str:
    """The processor, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads"
