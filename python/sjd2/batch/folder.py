"""The folder of a batch: what was asked for, every picture, and a manifest row for each that is done or has failed.

run.json             what the pictures depend on; a run of other settings does not go on here
manifest*.jsonl      a row per picture, appended when the picture lies in its place; with shards a file for each of them
images/0012/…png     the pictures, a thousand lines to a folder

A picture is written beside its place and moved there, then its row is appended: whatever is killed when, a row stands for a whole picture, and
what has no row is made again.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import check_writable
from ..journal import Journal, changes, read_settings, write_settings
from .jobs import Job

__all__ = ["BatchFolder"]

_RUN = "run.json"


class BatchFolder:
    """See the module.

    Args:
        folder: new, or of a run that goes on.
        shard: index and number of shards.

    Raises:
        OSError: a place that cannot be written.
    """

    def __init__(self, folder: str | Path, shard: tuple[int, int] = (0, 1)):
        self.folder = Path(folder)
        if self.folder.is_file():
            raise OSError(f"--output: expected a folder, {self.folder} is a file")
        index, count = shard
        self.manifest = Journal(self.folder / ("manifest.jsonl" if count == 1 else f"manifest-{index}-of-{count}.jsonl"))
        check_writable(self.manifest.path, "--output")

    def picture(self, job: Job) -> Path:
        """Where a job's picture lies, from the folder."""
        return Path("images") / f"{job.line // 1000:04d}" / f"{job.id}.png"

    @contextmanager
    def held(self, settings: dict[str, Any]) -> Iterator[None]:
        """Begin or go on; no other process may, with this manifest, at the same time.

        Raises:
            ValueError: what is there was made with other ``settings``, or another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{self.manifest.path.stem}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"--output: another process is at work in {self.folder}") from None
            with (self.folder / ".run.lock").open("w") as run:  # several shards may begin at the same moment
                fcntl.flock(run, fcntl.LOCK_EX)
                self._settle(settings)
            self.manifest.mend()
            yield

    def _settle(self, settings: dict[str, Any]) -> None:
        """Write down what is asked for, or compare it with what was."""
        path = self.folder / _RUN
        if not path.exists():
            write_settings(path, settings)
        elif changed := changes(read_settings(path), settings):
            raise ValueError(f"--output: {self.folder} holds pictures made with other settings ({changed}); give another folder")

    def recorded(self) -> dict[str, str]:
        """Status of every job that has a row: ``done`` or ``failed``. A picture that is gone counts for nothing."""
        found = {}
        for row in self.manifest.rows():
            if row["status"] != "done" or row["file"] is None or (self.folder / row["file"]).exists():
                found[row["id"]] = row["status"]
        return found

    def keep_only(self, ids: set[str]) -> None:
        """Rewrite the manifest with the rows of ``ids``; the others' pictures are made again."""
        self.manifest.replace([row for row in self.manifest.rows() if row["id"] in ids])

    def record(self, row: dict[str, Any]) -> None:
        """Append a row; it is on the disk when this returns, or, if there is no room for it, not there at all."""
        self.manifest.append(row)
