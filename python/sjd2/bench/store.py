"""The folder of a benchmark: what was asked for, and every cell as soon as it is done, so that an interrupted run goes on.

settings.json   what the figures depend on; a run with other settings does not go on here
cells.jsonl     a line per finished cell: one variant on one batch of pictures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import check_writable
from ..journal import Journal, changes, read_settings, write_settings

__all__ = ["Store"]

_SETTINGS, _CELLS = "settings.json", "cells.jsonl"


class Store:
    """A benchmark's folder; made by :meth:`begin`, not before.

    Args:
        folder: where, new or of the same benchmark.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.is_file():
            raise OSError(f"--output: expected a folder, {self.folder} is a file")
        self._cells = Journal(self.folder / _CELLS)
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
        return read_settings(self.folder / _SETTINGS)

    @property
    def begun(self) -> bool:
        """Whether a benchmark was begun here."""
        return (self.folder / _SETTINGS).exists()

    def check(self, settings: dict[str, Any]) -> None:
        """Whether a benchmark of these settings can go on, or begin, here.

        Raises:
            ValueError: what is there was run with other settings; the message names them.
        """
        if self.begun and (changed := changes(self.settings, settings)):
            raise ValueError(f"--output: {self.folder} holds a run with other settings ({changed}); give another folder, or --restart to begin anew")

    def begin(self, settings: dict[str, Any]) -> None:
        """Begin a benchmark; what was there is gone."""
        self._cells.path.unlink(missing_ok=True)
        write_settings(self.folder / _SETTINGS, settings)

    def cells(self) -> list[dict[str, Any]]:
        """Every finished cell; those of a variant are in the order of the pictures. What a kill cut off in the middle is removed from the file."""
        self._cells.mend()
        return list(self._cells.rows())

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell; it is on the disk when this returns."""
        self._cells.append(cell)
