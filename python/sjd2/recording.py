"""Work that is recorded once and replayed with one launch: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

import torch

__all__ = ["Recorder", "record_cuda_graph", "replaying"]


class Recorder(Protocol):
    """Records what ``work`` does, without doing it; returns what does it."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """See the class."""
        ...


def record_cuda_graph() -> Recorder:
    """Recorder of CUDA graphs that share one pool of memory, for no two of them run at the same time."""
    living: WeakSet[Any] = WeakSet()
    pool: Any = None

    def record(work: Callable[[], None]) -> Callable[[], None]:
        nonlocal pool
        others = tuple(living)  # as long as this one is recorded none of them goes
        if not others:
            # A pool that was used before and is not used now cannot be taken up again while anything is left in it, and the first recording of a
            # process leaves something for good: the workspace of cuBLAS for PyTorch's capture stream.
            pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool):
                work()
        except BaseException:
            torch.cuda.set_stream(stream)
            _end(pool)
            raise
        living.add(graph)
        return graph.replay

    return record


def _end(pool: Any) -> None:
    """What PyTorch up to 2.11 leaves undone, as it does the stream, if the end of a recording fails.

    Its allocator goes on as if it recorded, and keeps all memory that it caches. Where it did end the recording, the first call says so by an error.
    """
    library: Any = torch._C
    with suppress(RuntimeError):
        library._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        library._cuda_releasePool(torch.cuda.current_device(), pool)


def replaying(work: Callable[[], None], record: Recorder | None) -> Callable[[], None]:
    """What does ``work`` again without its Python; ``work`` itself without a recorder, and where it cannot be recorded."""
    work()  # what is made at its first use is not for a recording
    if record is None:
        return work
    try:
        return record(work)
    except RuntimeError:
        return work
