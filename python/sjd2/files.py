"""Checks before any work, and writes that leave no half-written file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_writable", "write_atomically"]


def check_writable(path: Path, argument: str) -> None:
    """Raise before the work starts what writing would raise after it. Makes nothing: the work may still fail."""
    if path.is_dir():
        raise OSError(f"{argument}: expected a file, {path} is a folder")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise OSError(f"{argument}: the folder {path.parent} cannot be made: {folder} is a file")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OSError(f"{argument}: {path} cannot be written")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a path beside ``path`` (same suffix) and move the result into place; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
