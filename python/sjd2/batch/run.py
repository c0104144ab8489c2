"""Runs a batch in this process, or on a Ray cluster; either way this process alone writes the manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from .folder import BatchFolder
from .jobs import Job
from .worker import Worker

__all__ = ["Tally", "run_batch", "waiting"]

#: Jobs that are handed to a model at a time, as a multiple of those that it decodes together: the batch runs empty only at the end of so many.
CHUNK = 16


@dataclass
class Tally:
    """What has become of a batch."""

    done: int = 0
    failed: int = 0
    before: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Pictures per second of this run."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class Progress:
    """Writes rows down, and counts."""

    def __init__(self, folder: BatchFolder, total: int, before: int, shown: bool):
        self.folder, self.tally, self._began = folder, Tally(before=before), time.perf_counter()
        self._model = next((row["model"] for row in folder.manifest.rows() if row["status"] == "done"), None)
        self.bar = tqdm(total=total, initial=before, unit="picture", disable=not shown, smoothing=0.05)

    def __call__(self, row: dict[str, Any]) -> None:
        """A job is done, or has failed.

        Raises:
            ValueError: the picture is by another model than those before it.
        """
        model = row.get("model", self._model)
        self._model = self._model or model
        if model != self._model:
            raise ValueError(f"--model: pictures in {self.folder.folder} were made by a model with fingerprint {self._model}, this one has {model}")
        self.folder.record(row)
        self.tally.seconds = time.perf_counter() - self._began
        if row["status"] == "done":
            self.tally.done += 1
        else:
            self.tally.failed += 1
            self.tally.errors.append(f"{row['id']}: {row['error']}")
            self.bar.set_postfix(failed=self.tally.failed)
        self.bar.update()


def waiting(jobs: Iterable[Job], recorded: Mapping[str, str]) -> Iterator[Job]:
    """The jobs that have no row yet."""
    return (job for job in jobs if job.id not in recorded)


def chunks(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Lists of at most ``size`` jobs."""
    rest = iter(jobs)
    while chunk := list(islice(rest, size)):
        yield chunk


def run_batch(worker: Worker, folder: BatchFolder, jobs: Iterable[Job], total: int, before: int, *, shown: bool = False) -> Tally:
    """Do ``jobs`` in this process.

    Args:
        total: jobs of the batch; ``before`` of them were done earlier.
        shown: a progress bar, with rate and time left.
    """
    progress = Progress(folder, total, before, shown)
    try:
        for chunk in chunks(jobs, CHUNK * worker.batch_size):
            worker.run(chunk, progress)
    finally:
        progress.bar.close()
    return progress.tally
