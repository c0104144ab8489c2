"""Runs a batch on Ray: Ray Data deals jobs out to a pool of actors, each with a model of its own, and does again what a lost actor left.

Actors write pictures; rows come back here, where the manifest is. So the folder has to be one that all nodes see. A row that comes twice, since
an actor was lost after its picture was written, is written down once; the picture is the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..pipeline import TextToImagePipeline
from .folder import BatchFolder
from .jobs import Job
from .run import Progress, Tally
from .worker import Worker

__all__ = ["Actors", "run_on_ray"]


@dataclass(frozen=True)
class Actors:
    """The pool.

    Attributes:
        count: of actors.
        gpus: of each; a fraction lets several share one.
        cpus: of each.
        address: of the cluster; ``auto`` finds a running one, ``local`` starts one on this machine.
    """

    count: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    address: str = "local"


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
    try:
        import ray
    except ImportError as error:
        raise ImportError("--ray: needs Ray: pip install 'sjd2-kernels[ray]'") from error

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(
            address=None if actors.address == "local" else actors.address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            num_cpus=max(1, round(actors.count * actors.cpus)) if actors.address == "local" else None,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would write over the progress bar, and has one of its own
    ray.data.DataContext.get_current().enable_progress_bars = False
    where, threads, worker_options = str(folder.folder.resolve()), max(1, int(actors.cpus)), dict(options)

    class Bound(_Actor):
        """With its arguments, so that Ray can start another one whatever has become of them."""

        def __init__(self) -> None:
            super().__init__(load, where, worker_options, threads)

    progress = Progress(folder, total, before, shown)
    seen: set[str] = set()
    try:
        texts = [{"job": json.dumps(asdict(job))} for job in jobs]
        if texts:
            rows = (
                ray.data.from_items(texts, override_num_blocks=max(1, -(-len(texts) // chunk)))
                .map_batches(
                    Bound,
                    batch_size=chunk,
                    compute=ray.data.ActorPoolStrategy(size=actors.count),
                    num_cpus=actors.cpus,
                    num_gpus=actors.gpus or None,
                )
                .iter_rows()
            )
            for found in rows:
                row = json.loads(found["row"])
                if row["id"] not in seen:
                    seen.add(row["id"])
                    progress(row)
    except ray.exceptions.RayError as error:
        cause = error.__cause__ or error
        raise RuntimeError(f"--ray: {' '.join(str(cause).split())[:500]}") from error
    finally:
        progress.bar.close()
        if started_here:
            ray.shutdown()
    return progress.tally
