"""What an iteration must not do on a GPU, seen on the meta device: be given tensors of the host."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FromTheHost(TorchDispatchMode):
    """Writes down every operation that is given a tensor on the CPU, and every tensor made of Python's numbers."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __enter__(self):
        self.patches = pytest.MonkeyPatch()
        for name in ("tensor", "as_tensor"):
            make = getattr(torch, name)
            self.patches.setattr(torch, name, lambda *args, make=make, **kwargs: self.seen.append(f"torch.{make.__name__}") or make(*args, **kwargs))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves((args, kwargs or {}))):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
