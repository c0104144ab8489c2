"""A Ray cluster for as long as a job lasts: one that is running, or one of this machine's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Actors", "cluster", "rows_of"]


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


@contextmanager
def cluster(actors: Actors, argument: str) -> Iterator[Any]:
    """The package ``ray``, joined to the cluster of ``actors``; what was started for this is stopped at the end.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: the cluster cannot be reached, or gave up.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"{argument}: needs Ray: pip install 'sjd2-kernels[ray]'") from error

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(
            address=None if actors.address == "local" else actors.address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            num_cpus=max(1, round(actors.count * actors.cpus)) if actors.address == "local" else None,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would write over our progress, and has a bar of its own
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause = error.__cause__ or error
        raise RuntimeError(f"{argument}: {' '.join(str(cause).split())[:500]}") from error
    finally:
        if started_here:
            ray.shutdown()


def rows_of(ray: Any, items: Sequence[Mapping[str, Any]], actor: type, size: int, actors: Actors) -> Iterator[dict[str, Any]]:
    """What a pool of ``actor`` makes of ``items``, row by row, in whatever order they come.

    Args:
        ray: what :func:`cluster` gives.
        items: dealt out in lists of ``size``. An actor has one list at a time, or the first that is ready would take all of a small job; what a lost
            one left is done again.
        actor: a class that is made without arguments, so that Ray can start another one whatever has become of them.
    """
    dataset = ray.data.from_items(list(items), override_num_blocks=-(-len(items) // size))
    return dataset.map_batches(
        actor,
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=1),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus or None,
    ).iter_rows()
