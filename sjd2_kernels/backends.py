"""Which implementation of an op runs.

Every op has a definition in PyTorch (``torch``), the ground truth; some also have fused Triton kernels (``triton``), C++ code for CPUs
(``cpp``), or C++ and CUDA code (``native``). By default (``auto``) each op takes the fastest that can run where its tensors are. A name
given to an op's ``backend=`` holds for that call; :func:`set_backend`, :func:`use_backend` and the environment variable ``SJD2_BACKEND``
hold for every op that has an implementation of that name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["BACKENDS", "current_backend", "resolve_backend", "set_backend", "use_backend"]

BACKENDS = ("auto", "torch", "triton", "cpp", "native")


def _checked(source: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_current = _checked("SJD2_BACKEND", os.environ.get("SJD2_BACKEND", "auto"))


def current_backend() -> str:
    """The name that holds for calls without a ``backend=`` of their own."""
    return _current


def set_backend(name: str) -> None:
    """Let every op that has an implementation called ``name`` use it from now on.

    Raises:
        ValueError: an unknown name.
    """
    global _current
    _current = _checked("backend", name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """:func:`set_backend` for the length of a ``with`` block."""
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def resolve_backend(op: str, requested: str | None, candidates: Mapping[str, str | None]) -> str:
    """The back-end that a call of ``op`` runs.

    Args:
        op: its name, for error messages.
        requested: the call's own ``backend=``, ``None`` for the one that holds for every op.
        candidates: the op's back-ends, the best for this call first, each with the reason why it cannot run here, or ``None`` if it can.

    Raises:
        ValueError: an unknown name, or the op has no back-end of the requested name.
        RuntimeError: the back-end cannot run here; the message says why.
    """
    name = _current if requested is None else _checked("backend", requested)
    if name not in candidates:
        if requested is not None and name != "auto":
            raise ValueError(f"backend: {op} has {', '.join(candidates)}, got {name!r}")
        name = "auto"
    if name == "auto":
        return next(candidate for candidate, obstacle in candidates.items() if obstacle is None)
    if (obstacle := candidates[name]) is not None:
        raise RuntimeError(f"backend: {op} cannot run on {name!r} here: {obstacle}")
    return name
