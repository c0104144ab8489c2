"""What runs that go on after a kill keep on disk: rows as they come, and the settings that both parts have to share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import write_atomically

__all__ = ["Journal", "changes", "read_settings", "write_settings"]


class Journal:
    """A file of JSON lines that grows: a row that was appended is on the disk, whole; of one that was not, nothing is.

    Args:
        path: made by the first row.
    """

    def __init__(self, path: Path):
        self.path = path

    def mend(self) -> None:
        """Remove what a kill left of a row; to be called by who appends, before anything is read."""
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.truncate(self.path, whole)

    def rows(self) -> Iterator[dict[str, Any]]:
        """In the order in which they came."""
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from map(json.loads, file)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row.

        Raises:
            OSError: there is no room for it; the file is as it was.
        """
        data = _line(row)
        size = self.path.stat().st_size if self.path.exists() else 0
        with self.path.open("ab") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, size)
                raise

    def replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Put ``rows`` in place of all that there are, at once."""
        data = b"".join(map(_line, rows))

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        write_atomically(self.path, write)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """As JSON, at once."""
    text = json.dumps(settings, indent=1) + "\n"
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def read_settings(path: Path) -> dict[str, Any]:
    """What :func:`write_settings` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [line for key in {**before, **now} for line in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) == len(now):
            return [line for index, pair in enumerate(zip(before, now, strict=True)) for line in _differences(*pair, f"{name}[{index}]")]
        return [f"{name}: {len(before)} → {len(now)} of them"]
    return [] if before == now else [f"{name}: {before!r} → {now!r}"]


def changes(before: dict[str, Any], now: dict[str, Any], shown: int = 3) -> str:
    """The first settings that differ, to be read in a message, and how many more do; empty if none does.

    Example:
        >>> changes({"seed": 1, "window": 8}, {"seed": 2, "window": 8})
        'seed: 1 → 2'
    """
    found = _differences(before, json.loads(json.dumps(now)))  # as they would be read back
    return "; ".join(found[:shown]) + (f"; and {len(found) - shown} more" if len(found) > shown else "")
