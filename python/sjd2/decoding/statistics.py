"""What a run reports: progress while it decodes, figures per row when it has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

__all__ = ["Progress", "RowReport", "Stopwatch"]


@dataclass(frozen=True)
class Progress:
    """Handed to the callback after every iteration. Reading a tensor makes the host wait for the device.

    Attributes:
        iteration: forwards so far (prefill not counted).
        committed: int64 ``[B]``, final tokens per row, 0 of rows that wait.
        totals: int64 ``[B]``, tokens per row when finished.
        tokens: int64 ``[B, N]``, valid below ``committed``; a view that the next iteration writes to.
        drafts: int64 ``[B, W]``, what the window that follows ``committed`` begins the next iteration with; of no meaning for a finished row.
        levels: int64 ``[B, W]``, the noise levels of those drafts (0: clean); ``None`` for a method that does not denoise.
    """

    iteration: int
    committed: torch.Tensor
    totals: torch.Tensor
    tokens: torch.Tensor
    drafts: torch.Tensor
    levels: torch.Tensor | None = None


@dataclass(frozen=True)
class RowReport:
    """One finished row.

    Attributes:
        tokens: number of tokens committed.
        forwards: forwards until the row was finished; prefill not counted.
        accepted: committed tokens that were drafts, fed to the model and kept (structural tokens not counted).
        seconds: from when the row began until the host saw it finished; rows that are decoded together share the time.
        forward_seconds: of those, spent in the model's forward, prefill included; ``None`` where iterations were replayed as graphs.
    """

    tokens: int
    forwards: int
    accepted: int
    seconds: float
    forward_seconds: float | None

    @property
    def tokens_per_forward(self) -> float:
        """Step compression: AR sampling has 1."""
        return self.tokens / max(self.forwards, 1)

    @property
    def accepted_per_forward(self) -> float:
        """Accepted drafts per forward."""
        return self.accepted / max(self.forwards, 1)


class Stopwatch:
    """Seconds inside a ``with`` block, summed over its uses, without making the host wait for the device."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def __enter__(self) -> None:
        if self._cuda:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        else:
            self._started = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def seconds(self) -> float:
        """The sum so far; on a GPU this waits for the last block to end."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        return self._seconds
