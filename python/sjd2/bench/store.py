"""The folder of a benchmark: what was asked for, and every cell as soon as it is done, so that an interrupted run goes on.

settings.json   what the figures depend on; a run with other settings does not go on here
cells.jsonl     a line per finished cell: one variant on one batch of pictures
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..files import check_writable, write_atomically

__all__ = ["Store"]

_SETTINGS, _CELLS = "settings.json", "cells.jsonl"


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What changed, as ``name: before → now``."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [line for key in {**before, **now} for line in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) == len(now):
            return [line for index, pair in enumerate(zip(before, now, strict=True)) for line in _differences(*pair, f"{name}[{index}]")]
        return [f"{name}: {len(before)} → {len(now)} of them"]
    return [] if before == now else [f"{name}: {before!r} → {now!r}"]


class Store:
    """A benchmark's folder; made by :meth:`begin`, not before.

    Args:
        folder: where, new or of the same benchmark.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.is_file():
            raise OSError(f"--output: expected a folder, {self.folder} is a file")
        check_writable(self.folder / _SETTINGS, "--output")

    @classmethod
    def existing(cls, folder: str | Path) -> Store:
        """The folder of a benchmark that was run before.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (Path(folder) / _SETTINGS).is_file():
            raise FileNotFoundError(f"{folder}: expected a folder that `sjd2 bench -o` made, found no {_SETTINGS} in it")
        return cls(folder)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for when it began."""
        return json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))

    @property
    def begun(self) -> bool:
        """Whether a benchmark was begun here."""
        return (self.folder / _SETTINGS).exists()

    def check(self, settings: dict[str, Any]) -> None:
        """Whether a benchmark of these settings can go on, or begin, here.

        Raises:
            ValueError: what is there was run with other settings; the message names them.
        """
        if self.begun and (changed := _differences(self.settings, json.loads(json.dumps(settings)))):
            shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise ValueError(f"--output: {self.folder} holds a run with other settings ({shown}); give another folder, or --restart to begin anew")

    def begin(self, settings: dict[str, Any]) -> None:
        """Begin a benchmark; what was there is gone."""
        (self.folder / _CELLS).unlink(missing_ok=True)
        text = json.dumps(settings, indent=1) + "\n"
        write_atomically(self.folder / _SETTINGS, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def cells(self) -> list[dict[str, Any]]:
        """Every finished cell; those of a variant are in the order of the pictures. What a kill cut off in the middle is removed from the file."""
        path = self.folder / _CELLS
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell; it is on the disk when this returns."""
        with (self.folder / _CELLS).open("ab") as file:
            file.write(json.dumps(cell).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
