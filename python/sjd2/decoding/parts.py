"""Names for parts of an iteration, for whoever measures them; nothing happens where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

__all__ = ["PARTS", "part", "watch_parts"]

#: The parts that :func:`part` is called with. What an iteration does outside of them is the shifting of the window.
PARTS = ("forward", "verify", "cache")

_NOTHING = nullcontext()
_watcher: ContextVar[Callable[[str], AbstractContextManager] | None] = ContextVar("watcher", default=None)


def part(name: str) -> AbstractContextManager:
    """What the part ``name`` of an iteration runs in."""
    watcher = _watcher.get()
    return _NOTHING if watcher is None else watcher(name)


@contextmanager
def watch_parts(watcher: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Run every part of the iterations inside the ``with`` block in ``watcher(name)``, also while a graph is recorded.

    Example:
        >>> from contextlib import contextmanager
        >>> from sjd2.decoding.parts import part, watch_parts
        >>> @contextmanager
        ... def tell(name):
        ...     print("begin", name)
        ...     yield
        ...     print("end", name)
        >>> with watch_parts(tell), part("verify"):
        ...     print("at work")
        begin verify
        at work
        end verify
        >>> with part("verify"):
        ...     print("unwatched")
        unwatched
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
