"""The folder of a batch: what was asked for, every picture, and a manifest row for each that is done or has failed.

run.json             what the pictures depend on; a run of other settings does not go on here
manifest*.jsonl      a row per picture, appended when the picture lies in its place; with shards a file for each of them
images/0012/…png     the pictures, a thousand lines to a folder

A picture is written beside its place and moved there, then its row is appended: whatever is killed when, a row stands for a whole picture, and
what has no row is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import check_writable, write_atomically
from .jobs import Job

__all__ = ["BatchFolder"]

_RUN = "run.json"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name}: {before.get(name)!r} → {now.get(name)!r}" for name in {**before, **now} if before.get(name) != now.get(name)]


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
        self.manifest = self.folder / ("manifest.jsonl" if count == 1 else f"manifest-{index}-of-{count}.jsonl")
        check_writable(self.manifest, "--output")

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
        with (self.folder / f".{self.manifest.stem}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"--output: another process is at work in {self.folder}") from None
            with (self.folder / ".run.lock").open("w") as run:  # several shards may begin at the same moment
                fcntl.flock(run, fcntl.LOCK_EX)
                self._settle(json.loads(json.dumps(settings)))
            self._mend()
            yield

    def _settle(self, settings: dict[str, Any]) -> None:
        """Write down what is asked for, or compare it with what was."""
        path = self.folder / _RUN
        if not path.exists():
            text = json.dumps(settings, indent=1) + "\n"
            write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        elif changed := _changes(json.loads(path.read_text(encoding="utf-8")), settings):
            shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise ValueError(f"--output: {self.folder} holds pictures made with other settings ({shown}); give another folder")

    def _mend(self) -> None:
        """Remove what a kill left of a row."""
        if self.manifest.exists():
            content = self.manifest.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.truncate(self.manifest, whole)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The manifest."""
        if self.manifest.exists():
            with self.manifest.open("rb") as file:
                yield from map(json.loads, file)

    def recorded(self) -> dict[str, str]:
        """Status of every job that has a row: ``done`` or ``failed``. A picture that is gone counts for nothing."""
        found = {}
        for row in self.rows():
            if row["status"] != "done" or row["file"] is None or (self.folder / row["file"]).exists():
                found[row["id"]] = row["status"]
        return found

    def keep_only(self, ids: set[str]) -> None:
        """Rewrite the manifest with the rows of ``ids``; the others' pictures are made again."""
        rows = [row for row in self.rows() if row["id"] in ids]

        def write(scratch: Path) -> None:
            with scratch.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())

        write_atomically(self.manifest, write)

    def record(self, row: dict[str, Any]) -> None:
        """Append a row; it is on the disk when this returns, or, if there is no room for it, not there at all."""
        data = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        size = self.manifest.stat().st_size if self.manifest.exists() else 0
        with self.manifest.open("ab") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.manifest, size)
                raise
