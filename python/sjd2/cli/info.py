"""``sjd2 info``: what a bug report should contain."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any

import torch

import sjd2_kernels
from sjd2_kernels.backends import resolve_backend
from sjd2_kernels.compiled import describe, obstacle, op_backends

from ..attention import ATTENTIONS, AttentionShape
from ..attention.interface import obstacle as obstacle_of_attention

__all__ = ["add_parser", "collect"]

_PACKAGES = ("sjd2-kernels", "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "accelerate", "peft")


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser("info", help="versions, back-ends, devices", description="Print versions, back-ends and devices.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backends(op: str, candidates: dict[str, str | None]) -> str:
    """The back-end that ``auto`` takes where the pipeline would run, and what keeps the others from running."""
    chosen = resolve_backend(op, None, candidates)
    others = [f"{name}: {obstacle or 'can run'}" for name, obstacle in candidates.items() if name != chosen]
    return f"{chosen} ({'; '.join(others)})"


def _attentions(device: torch.device) -> str:
    """Who can compute a window's attention, of a model that is stored in bfloat16, and what keeps the others from it."""
    shape = AttentionShape(32, 32, 128, torch.bfloat16)
    obstacles = {name: obstacle_of_attention(name, shape, device, timesteps=False) for name in ATTENTIONS}
    return ", ".join(name if reason is None else f"{name} ({reason})" for name, reason in obstacles.items())


def collect() -> dict[str, str]:
    """Names and values, in the order they are printed."""
    facts = {package: _version(package) for package in _PACKAGES}
    facts["python"] = platform.python_version()
    facts["platform"] = platform.platform()
    facts["installed at"] = str(sjd2_kernels.__path__[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    like = torch.empty(0, device=device)
    # `verify` speaks for `sample`.
    facts["verify"] = _backends("verify", op_backends(like))
    facts["denoise"] = _backends("denoise", op_backends(like))
    facts["attention"] = _attentions(torch.device(device))
    facts["kv cache"] = _backends("kv_append", {"native": obstacle(device), "torch": None})
    facts["native code"] = describe()
    facts["cpu threads"] = str(torch.get_num_threads())
    facts["cuda"] = torch.version.cuda or "not in this PyTorch"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
    return facts


def run(options: argparse.Namespace) -> int:
    """Print the facts."""
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
    return 0
