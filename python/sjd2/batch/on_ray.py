"""Runs a batch on Ray: Ray Data deals jobs out to a pool of actors, each with a model of its own, and does again what a lost actor left.

Actors write pictures; rows come back here, where the manifest is. So the folder has to be one that all nodes see. A row that comes twice, since
an actor was lost after its picture was written, is written down once; the picture is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..cluster import Actors, cluster, rows_of
from ..pipeline import TextToImagePipeline
from .folder import BatchFolder
from .jobs import Job
from .run import Progress, Tally
from .worker import Worker

__all__ = ["Actors", "run_on_ray"]


class _Actor:
    """Loads the model once; is handed chunks of jobs and hands back their rows."""

    def __init__(self, load: Callable[[], TextToImagePipeline], folder: str, options: Mapping[str, Any], threads: int):
        torch.set_num_threads(threads)
        self.worker = Worker(load(), Path(folder), BatchFolder(folder).picture, **options)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        rows: list[str] = []
        self.worker.run([Job(**json.loads(text)) for text in batch["job"]], lambda row: rows.append(json.dumps(row)))
        yield {"row": rows}


def run_on_ray(
    load: Callable[[], TextToImagePipeline],
    folder: BatchFolder,
    jobs: Iterable[Job],
    total: int,
    before: int,
    actors: Actors,
    *,
    shown: bool = False,
    chunk: int,
    options: Mapping[str, Any],
) -> Tally:
    """Do ``jobs`` on a cluster.

    Args:
        load: makes an actor's pipeline.
        total: jobs of the batch; ``before`` of them were done earlier.
        shown: a progress bar.
        chunk: jobs that an actor is handed at a time.
        options: of each actor's ``Worker``.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: the cluster cannot be reached, or gave up.
    """
    where, threads, worker_options = str(folder.folder.resolve()), max(1, int(actors.cpus)), dict(options)

    class Bound(_Actor):
        """With its arguments."""

        def __init__(self) -> None:
            super().__init__(load, where, worker_options, threads)

    progress = Progress(folder, total, before, shown)
    seen: set[str] = set()
    try:
        texts = [{"job": json.dumps(asdict(job))} for job in jobs]
        with cluster(actors, "--ray") as ray:
            if texts:
                for found in rows_of(ray, texts, Bound, chunk, actors):
                    row = json.loads(found["row"])
                    if row["id"] not in seen:
                        seen.add(row["id"])
                        progress(row)
    finally:
        progress.bar.close()
    return progress.tally
