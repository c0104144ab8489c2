"""Times of calls: microseconds of what a device does, without what Python needs to ask for it where that can be told apart.

On a GPU a call is recorded as a CUDA graph, as the decoder runs it, several times in a row if it is short, and replays are timed by events. What
cannot be recorded is timed operation by operation. On a CPU a call is timed by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sjd2.recording import record_cuda_graph

#: Seconds that all repeats of one call may take together, about.
BUDGET = 0.2
#: Microseconds below which a call is recorded several times in a row, and how often at most.
SHORT, IN_A_ROW = 200, 10

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Microseconds of one call, sorted; ``way``: ``graph``, ``eager`` or ``clock``."""

    microseconds: list[float]
    way: str

    def percentile(self, share: float) -> float:
        """Microseconds that a ``share`` of the calls stayed below."""
        return self.microseconds[int(share * (len(self.microseconds) - 1))]


def recorded(call: Call) -> Call | None:
    """What replays ``call`` as a CUDA graph, ``None`` if it cannot be recorded."""
    try:
        return record_cuda_graph()(call)
    except RuntimeError:
        torch.cuda.synchronize()
        return None


def gpu_milliseconds(call: Call, repeats: int, before: Call | None = None) -> list[float]:
    """Of each of ``repeats`` calls, by events; ``before`` runs before each, unmeasured. The host does not wait between them."""
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        if before is not None:
            before()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in marks]


def _repeats(milliseconds: float, most: int) -> int:
    return max(3, min(most, int(1e3 * BUDGET / max(milliseconds, 1e-3))))


def _on_gpu(call: Call, repeats: int, flush: Call | None) -> Times:
    for _ in range(3):
        call()
    single = min(gpu_milliseconds(call, 3))
    times = 1 if 1e3 * single > 10 * SHORT else IN_A_ROW  # eager times are those of launches

    def row() -> None:
        for _ in range(times):
            if flush is not None:
                flush()
            call()

    replay = recorded(row)
    if replay is None:
        found = gpu_milliseconds(call, _repeats(single, repeats), flush)
        return Times(sorted(1e3 * one for one in found), "eager")
    replay()
    flushing = 0.0
    if flush is not None:
        only_flush = recorded(lambda: [flush() for _ in range(times)])
        assert only_flush is not None
        only_flush()
        flushing = sorted(gpu_milliseconds(only_flush, 9))[4]
    found = gpu_milliseconds(replay, _repeats(min(gpu_milliseconds(replay, 3)), repeats))
    return Times(sorted(1e3 * (one - flushing) / times for one in found), "graph")


def _on_cpu(call: Call, repeats: int, flush: Call | None) -> Times:
    def once() -> float:
        if flush is not None:
            flush()
        started = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - started)

    first = min(once() for _ in range(2))
    return Times(sorted(once() for _ in range(_repeats(first / 1e3, repeats))), "clock")


def call_times(call: Call, device: torch.device, repeats: int, flush: torch.Tensor | None = None) -> Times:
    """Microseconds of at most ``repeats`` calls, with the cache overwritten before each by writing ``flush``, if given."""
    overwrite = None if flush is None else flush.zero_
    return (_on_gpu if device.type == "cuda" else _on_cpu)(call, repeats, overwrite)


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written bytes both counted."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (call_times(lambda: target.copy_(source), device, 20).percentile(0.5) * 1e-6)
