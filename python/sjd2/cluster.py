"""A Ray cluster for as long as a job lasts: one that is running, or one of this machine's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Actors", "cluster"]


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
