"""The most memory that a piece of work had in use."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["PeakMemory"]

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Peak bytes in use inside a ``with`` block, weights included, in ``bytes``.

    On a GPU what PyTorch's allocator held; on a CPU the process's resident memory, which Linux counts anew when told to. ``None`` elsewhere.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._counts = True
        else:
            try:
                _RESET.write_text("5")
                self._counts = True
            except OSError:
                self._counts = False
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._counts:
            return
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            self.bytes = int(line.split()[1]) * 1024
