"""Memory of the launch and of its programs, and what must not be done with it."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np
import torch

__all__ = ["POISON", "AccessError", "Global", "Shared"]

#: What nobody should read yet: NaN in all formats, and as a number no place in a tensor.
POISON = np.uint32(0x7FFF7FFF)

_BASE = 1 << 12
_ALL = np.frombuffer((ctypes.c_uint8 * ((1 << 47) - _BASE)).from_address(_BASE), np.uint8)
_VIEWS = {size: _ALL[: len(_ALL) // size * size].view(f"u{size}") for size in (1, 2, 4, 8)}
_SECTOR = 32
_SEVERAL = -2


class AccessError(Exception):
    """An access that is not allowed; the machine says where it happened."""


class Global:
    """The tensors of a launch, and nothing else, at their addresses."""

    def __init__(self, tensors: list[torch.Tensor]):
        spans = sorted((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()) for tensor in tensors)
        self.starts = np.array([start for start, _ in spans], np.uint64)
        self.ends = np.array([start + size for start, size in spans], np.uint64)
        #: Bytes that loads and stores asked for, and those of the sectors of 32 bytes that a warp touches for them.
        self.wanted: Counter = Counter()
        self.moved: Counter = Counter()

    def _check(self, addresses: np.ndarray, size: int) -> None:
        if (addresses % np.uint64(size)).any():
            raise AccessError(f"address {addresses[addresses % np.uint64(size) != 0][0]:#x} is no multiple of {size}")
        span = np.searchsorted(self.starts, addresses, "right") - 1
        inside = (span >= 0) & (addresses + np.uint64(size) <= self.ends[np.maximum(span, 0)])
        if not inside.all():
            raise AccessError(f"{(~inside).sum()} addresses outside all tensors of the launch, {addresses[~inside][0]:#x} the first")

    def _count(self, kind: str, addresses: np.ndarray, size: int, warps: np.ndarray) -> None:
        sectors = np.unique(warps.astype(np.uint64) << np.uint64(48) | addresses // np.uint64(_SECTOR))
        self.wanted[kind] += len(addresses) * size
        self.moved[kind] += len(sectors) * _SECTOR

    def load(self, addresses: np.ndarray, size: int, count: int, warps: np.ndarray) -> list[np.ndarray]:
        """``count`` values of ``size`` bytes from every address on."""
        self._check(addresses, size * count)
        self._count("load", addresses, size * count, warps)
        first = (addresses - np.uint64(_BASE)) // np.uint64(size)
        return [_VIEWS[size][first + np.uint64(n)] for n in range(count)]

    def store(self, addresses: np.ndarray, size: int, values: list[np.ndarray], warps: np.ndarray) -> None:
        """Values of ``size`` bytes to every address on."""
        self._check(addresses, size * len(values))
        self._count("store", addresses, size * len(values), warps)
        first = (addresses - np.uint64(_BASE)) // np.uint64(size)
        for n, value in enumerate(values):
            _VIEWS[size][first + np.uint64(n)] = value
            if (_VIEWS[size][first + np.uint64(n)] != value).any():
                raise AccessError("threads store different values at one address")


class Shared:
    """Shared memory of all programs: full of garbage, and every access held against those since the last barrier."""

    def __init__(self, blocks: int, size: int, block: np.ndarray, warp: np.ndarray, random: np.random.Generator):
        self.size = -(-max(size, 16) // 16) * 16
        self.bytes = random.integers(0, 256, blocks * self.size, dtype=np.uint8)
        self.views = {width: self.bytes.view(f"u{width}") for width in (1, 2, 4, 8)}
        self.block, self.warp = block, warp
        self.epoch = np.zeros(blocks, np.int64)
        # Of every byte, when it was last written and read, and by which warp; -2 for several.
        self.written = np.full(len(self.bytes), -1, np.int64)
        self.read = np.full(len(self.bytes), -1, np.int64)
        self.writer = np.full(len(self.bytes), -1, np.int64)
        self.reader = np.full(len(self.bytes), -1, np.int64)
        # When it was last written by what is not there for products without a fence.
        self.stored = np.full(len(self.bytes), -1, np.int64)

    def _places(self, lanes: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        addresses = addresses.astype(np.int64)
        if (addresses % size).any():
            raise AccessError(f"shared address {addresses[addresses % size != 0][0]} is no multiple of {size}")
        if (addresses < 0).any() or (addresses + size > self.size).any():
            raise AccessError(f"shared address {addresses.max()} in {self.size} bytes")
        return self.block[lanes] * self.size + addresses

    def _mark(self, when: np.ndarray, who: np.ndarray, place: np.ndarray, now: np.ndarray, warp: np.ndarray) -> None:
        """Write down an access; of several warps at once, or since the barrier, that they were several."""
        who[place] = np.where((when[place] == now) & (who[place] != warp), _SEVERAL, warp)
        when[place] = now
        who[place[(who[place] != warp) & (who[place] != _SEVERAL)]] = _SEVERAL

    def load(self, lanes: np.ndarray, addresses: np.ndarray, size: int, count: int) -> list[np.ndarray]:
        """``count`` values of ``size`` bytes from every address on."""
        places = self._places(lanes, addresses, size * count)
        now, warp = self.epoch[self.block[lanes]], self.warp[lanes]
        for place in (places + n for n in range(size * count)):
            if ((self.written[place] == now) & (self.writer[place] != warp)).any():
                raise AccessError("a read of shared memory that another warp wrote since the last barrier")
            self._mark(self.read, self.reader, place, now, warp)
        return [self.views[size][places // size + n] for n in range(count)]

    def load_later(self, lanes: np.ndarray, addresses: np.ndarray, begun: np.ndarray, fenced: np.ndarray) -> np.ndarray:
        """16 bytes from every address on, read at some time between ``begun`` and now by all warps: ``[..., 8]`` in units of 2.

        ``fenced`` is when what was stored was last made visible to such a read.
        """
        places = self._places(lanes, addresses, 16)
        place = places[..., None] + np.arange(16)
        if (self.written[place] >= begun[..., None]).any():
            raise AccessError("a product reads shared memory that was written since the last barrier before it began")
        if (self.stored[place] > fenced[..., None]).any():
            raise AccessError("a product reads shared memory that was written since the last fence.proxy.async")
        self.read[place], self.reader[place] = self.epoch[self.block[lanes]][..., None], _SEVERAL
        return self.views[2][places[..., None] // 2 + np.arange(8)]

    def store(self, lanes: np.ndarray, addresses: np.ndarray, size: int, values: list[np.ndarray], fence: bool = True) -> None:
        """Values of ``size`` bytes to every address on; ``fence``, if products may not read them without one."""
        places = self._places(lanes, addresses, size * len(values))
        now, warp = self.epoch[self.block[lanes]], self.warp[lanes]
        for place in (places + n for n in range(size * len(values))):
            if ((self.written[place] == now) & (self.writer[place] != warp)).any() or (
                (self.read[place] == now) & (self.reader[place] != warp)
            ).any():
                raise AccessError("a write of shared memory that another warp read or wrote since the last barrier")
            self._mark(self.written, self.writer, place, now, warp)
            self.stored[place] = now if fence else -1
        for n, value in enumerate(values):
            self.views[size][places // size + n] = value
            if (self.views[size][places // size + n] != value).any():
                raise AccessError("threads store different values at one place of shared memory")
