"""Matplotlib, where it is installed."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["figure_file", "require_matplotlib"]


def require_matplotlib() -> Any:
    """Matplotlib's ``Figure``: drawn into without a screen, and without a choice of back-end that others would notice.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is not installed, and pictures of figures need it: pip install "sjd2-kernels[bench]"') from error
    return Figure


@contextmanager
def figure_file(path: str | Path, **options: Any) -> Iterator[Any]:
    """A figure that is written to ``path`` when the block ends, whole or not at all.

    Args:
        options: of Matplotlib's ``Figure``.
    """
    figure = require_matplotlib()(**{"layout": "constrained", "dpi": 120, **options})
    yield figure
    write_atomically(Path(path), figure.savefig)
