"""Triton's interpreter, as unforgiving as a GPU.

The interpreter runs the programs of a launch one after another, in ascending order, in memory that is never read where it may not be, and gives zeros
for what is undefined. A kernel that relies on any of it passes there and fails on a GPU. Under :func:`interpreted` it fails here:

=============================================================  =====================================================================
on a GPU                                                       here
=============================================================  =====================================================================
programs run in any order                                      in the ``order`` given
fresh memory, and masked lanes of a load without ``other``,    ``garbage`` of two kinds
hold anything
an address outside the tensors reads or destroys something     a fault, and the lane is left out
programs run at the same time                                  a fault, if one reads or overwrites what another wrote, unless a counter
                                                               says that it is there: written, barrier, atomic; atomic, load with ``.cg``
threads of a program run at the same time                      a fault, if a program reads or overwrites what it wrote with no barrier
                                                               between
the order of atomic float sums is not repeatable               a fault
NaN and what is too large have no integer                      a fault where one is cast
maximum and minimum of a number and NaN are the number         as there; Triton 3.6 interprets it as NaN
=============================================================  =====================================================================

A program that reads what a *later* one of this order writes is not noticed; in the opposite order it is. If a program overwrites, with no barrier
between, what its other threads have yet to read, that is never noticed.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch

__all__ = ["Filled", "Watched", "interpreted"]

#: Two kinds of what uninitialised memory may hold: absurd, and plausible.
_FILLS = (
    {torch.bool: True, torch.int16: -12_345, torch.int32: -1_234_567_890, torch.int64: -(2**60), torch.float32: float("nan")},
    {torch.bool: False, torch.int16: 1, torch.int32: 1, torch.int64: 1, torch.float32: 0.25},
)


class Filled:
    """``torch``, but for ``empty``, which fills what it makes."""

    def __init__(self, garbage: int = 0):
        self._fill = _FILLS[garbage]

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype, device):
        value = self._fill[torch.float32 if dtype.is_floating_point else dtype]
        return torch.full(shape[0] if isinstance(shape[0], tuple | torch.Size) else shape, value, dtype=dtype, device=device)


def _garbage(dtype: np.dtype, is_bfloat16: bool, kind: int):
    """What masked lanes hold."""
    if is_bfloat16:
        return (0x7FC0, 0x3F80)[kind]  # NaN and 1, as the interpreter has bfloat16: bits
    if dtype == np.bool_:
        return True
    return (np.nan if dtype.kind == "f" else 2 ** (8 * dtype.itemsize - 2) - 1, 1)[kind]


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of a view, and the first behind it."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else -1
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class _Area:
    """Memory of one argument, or of several that overlap, and who wrote what there."""

    def __init__(self, begin: int, end: int):
        self.begin, self.end = begin, end
        self.writer: np.ndarray | None = None  # of every byte: the program, or -1
        self.epoch: np.ndarray | None = None  # how many barriers it had passed

    def record(self, at: np.ndarray, size: int, program: int, epoch: int) -> None:
        if self.writer is None:
            self.writer, self.epoch = (np.full(self.end - self.begin, -1, dtype=np.int32) for _ in range(2))
        for byte in range(size):
            self.writer[at + byte] = program
            self.epoch[at + byte] = epoch


class _Launch:
    """The memory and the clocks of the programs of one launch.

    A program's epoch is the number of barriers that it passed. With an atomic it publishes, at that address, its own epoch and those that it knows of
    others; what it wrote in an earlier epoch is then there for all that come to the same address with an atomic later.
    """

    def __init__(self, kernel: str, tensors: list[torch.Tensor]):
        self.kernel, self.grid = kernel, (1, 1, 1)
        self.areas: list[_Area] = []
        for begin, end in sorted(map(_extent, tensors)):
            if self.areas and begin < self.areas[-1].end:
                self.areas[-1].end = max(self.areas[-1].end, end)
            elif begin < end:
                self.areas.append(_Area(begin, end))
        self.begins = [area.begin for area in self.areas]
        self.program, self.epoch = 0, 0
        self.published: dict[int, np.ndarray] = {}
        self.atomics: set[int] = set()

    def start(self, grid: tuple[int, int, int]) -> None:
        self.grid, self.count = grid, grid[0] * grid[1] * grid[2]

    def enter(self, program: int) -> None:
        """A program begins, and knows of no other."""
        self.program, self.epoch = program, 0
        self.known = np.zeros(self.count, dtype=np.int32)

    def place(self, program: int) -> tuple[int, int, int]:
        return program // (self.grid[1] * self.grid[2]), program // self.grid[2] % self.grid[1], program % self.grid[2]

    def inside(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Which addresses lie, to their last byte, within one argument."""
        if not self.begins:
            return np.zeros(addresses.shape, dtype=bool)
        low, high = int(addresses.min()), int(addresses.max())
        area = self.areas[max(bisect_right(self.begins, low) - 1, 0)]
        if low >= area.begin and high + size <= area.end:
            return np.ones(addresses.shape, dtype=bool)
        which = np.searchsorted(np.array(self.begins, dtype=np.uint64), addresses, side="right") - 1
        ends = np.array([area.end for area in self.areas], dtype=np.uint64)
        return (which >= 0) & (addresses + np.uint64(size) <= ends[np.maximum(which, 0)])

    def written(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Who wrote what lies at ``addresses``, and in which epoch; -1 where nobody did."""
        writer, epoch = np.full((2, len(addresses)), -1, dtype=np.int32)
        for area in self.areas:
            if area.writer is None:
                continue
            here = (addresses >= area.begin) & (addresses < area.end)
            at = (addresses[here] - np.uint64(area.begin)).astype(np.int64)
            last = at + size - 1  # an element may lie over a smaller one
            by_last = area.writer[at] < area.writer[last]
            writer[here] = np.where(by_last, area.writer[last], area.writer[at])
            epoch[here] = np.where(by_last, area.epoch[last], area.epoch[at])
        return writer, epoch

    def record(self, addresses: np.ndarray, size: int) -> None:
        for area in self.areas:
            here = (addresses >= area.begin) & (addresses < area.end)
            if here.any():
                area.record((addresses[here] - np.uint64(area.begin)).astype(np.int64), size, self.program, self.epoch)

    def unseen(self, writer: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Which writes by other programs no counter vouches for."""
        return (writer >= 0) & (writer != self.program) & (epoch >= self.known[np.maximum(writer, 0)])

    def meet(self, address: int, *, acquire: bool, release: bool) -> None:
        """An atomic at ``address``."""
        self.atomics.add(address)
        there = self.published.setdefault(address, np.zeros(self.count, dtype=np.int32))
        if acquire:
            np.maximum(self.known, there, out=self.known)
        if release:
            np.maximum(there, self.known, out=there)
            there[self.program] = max(there[self.program], self.epoch)


def _line() -> str:
    """The line of the kernel that is being run."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "triton" in frame.f_code.co_filename.split("/")):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


class Watched:
    """What happened: ``launches`` as (kernel, programs), ``faults`` as sentences, each line's first of a kind."""

    def __init__(self, order: str | int, garbage: int):
        self.order, self.garbage = order, garbage
        self.launches: list[tuple[str, int]] = []
        self.faults: dict[tuple[str, str], str] = {}
        self._launch = _Launch("", [])
        self._numbers: Iterator[int] = iter(())

    def fault(self, kind: str, detail: str = "") -> None:
        launch, line = self._launch, _line()
        self.faults.setdefault((line, kind), f"{launch.kernel} {launch.place(launch.program)} at {line} {kind}{detail}")

    def begin(self, kernel: str, arguments: list) -> None:
        self._launch = _Launch(kernel, [argument for argument in arguments if isinstance(argument, torch.Tensor)])

    def set_grid(self, grid: tuple[int, int, int]) -> None:
        launch = self._launch
        launch.start(grid)
        self.launches.append((launch.kernel, launch.count))
        numbers = np.arange(launch.count)
        if self.order == "descending":
            numbers = numbers[::-1]
        elif self.order != "ascending":
            np.random.default_rng(self.order).shuffle(numbers)
        self._numbers = iter(numbers.tolist())

    def next_program(self) -> tuple[int, int, int]:
        self._launch.enter(next(self._numbers))
        return self._launch.place(self._launch.program)

    def check(self, pointers: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(mask without the lanes that lie outside, addresses of the others)."""
        mask = np.broadcast_to(mask.astype(bool, copy=False), pointers.shape)
        addresses = pointers[mask]
        if not addresses.size:
            return mask, addresses
        inside = self._launch.inside(addresses, size)
        if not inside.all():
            self.fault("is outside of all arguments", f", in {int((~inside).sum())} lanes")
            mask = mask.copy()
            mask[mask] = inside
            addresses = addresses[inside]
        if self._launch.atomics and np.isin(addresses, list(self._launch.atomics)).any():
            self.fault("touches a counter of the launch, and not with an atomic")
        return mask, addresses

    def load(self, addresses: np.ndarray, size: int, past_cache: bool) -> None:
        launch = self._launch
        writer, epoch = launch.written(addresses, size)
        if ((writer == launch.program) & (epoch == launch.epoch)).any():
            self.fault("reads what this program wrote, with no barrier between")
        unseen = launch.unseen(writer, epoch)
        if unseen.any():
            self.fault("reads what another program of the launch wrote, and no counter vouches for it", f": {launch.place(int(writer[unseen][0]))}")
        elif not past_cache and ((writer >= 0) & (writer != launch.program)).any():
            self.fault("reads what another program of the launch wrote, from its own cache: not .cg")

    def store(self, addresses: np.ndarray, size: int, before: np.ndarray, values: np.ndarray) -> None:
        launch = self._launch
        before, values = _bits(before), _bits(values)
        writer, epoch = launch.written(addresses, size)
        changed = before != values
        if (changed & (writer == launch.program) & (epoch == launch.epoch)).any():
            self.fault("overwrites what this program wrote, with no barrier between")
        overwritten = changed & launch.unseen(writer, epoch)
        if overwritten.any():
            self.fault("overwrites what another program of the launch wrote", f": {launch.place(int(writer[overwritten][0]))}")
        _, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
        if (values != values[first][inverse.reshape(-1)]).any():
            self.fault("has two values for one address")
        launch.record(addresses, size)

    def atomic(self, addresses: np.ndarray, size: int, is_float: bool, semantics: str, scope: str) -> None:
        launch = self._launch
        if is_float:
            self.fault("is an atomic of floats, whose order shows")
        if launch.unseen(*launch.written(addresses, size)).any():
            self.fault("is an atomic where another program of the launch stores")
        wide = "CTA" not in scope
        for address in addresses.tolist():
            launch.meet(address, acquire=wide and "ACQUIRE" in semantics, release=wide and "RELEASE" in semantics)

    def barrier(self) -> None:
        self._launch.epoch += 1

    def cast(self, values: np.ndarray, bits: int, signed: bool) -> None:
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (-1.0, 2.0**bits)
        with np.errstate(invalid="ignore"):
            defined = (values >= low if signed else values > low) & (values < high)
        if not defined.all():
            self.fault("casts what has no integer", f": {values[~defined][0]}")


def _patches(watched: Watched) -> Iterator:
    """Patches of the interpreter, of Triton 3.6 as of 3.9."""
    from triton import language as tl
    from triton.runtime import interpreter

    from sjd2_kernels.fused import attention, denoise, launch

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    set_grid_dim, set_grid_idx = builder.set_grid_dim, builder.set_grid_idx
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    init_args, restore_args = executor._init_args_hst, executor._restore_args_dev

    def handle(data, like):
        return interpreter.TensorHandle(data, like.dtype)

    def watched_init(self, arguments, named):
        host, named_host = init_args(self, arguments, named)
        watched.begin(self.fn.__name__, [*host, *named_host.values()])
        return host, named_host

    def watched_restore(self, arguments, host, named, named_host):
        # Of tensors on the CPU the host's are no copies, and to copy them onto themselves would touch all of a storage of gigabytes.
        if any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in (*arguments, *named.values())):
            restore_args(self, arguments, host, named, named_host)

    def watched_grid(self, *grid):
        set_grid_dim(self, *grid)
        watched.set_grid(grid)

    def watched_load(self, pointers, mask, other, cache, *rest):
        element = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(element)
        mask_data, addresses = watched.check(pointers.data, mask.data, dtype.itemsize)
        if addresses.size:
            watched.load(addresses, dtype.itemsize, str(cache).upper().endswith("CG"))
        if other is None:
            fill = np.full(pointers.data.shape, _garbage(dtype, element == tl.bfloat16, watched.garbage), dtype=dtype)
            other = interpreter.TensorHandle(fill, element)
        return load(self, pointers, handle(mask_data, mask), other, cache, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        size = value.data.dtype.itemsize
        mask_data, addresses = watched.check(pointers.data, mask.data, size)
        if addresses.size:
            before = interpreter._interpreter.load(pointers.data, mask_data, np.zeros_like(value.data), value.data.dtype)
            values = np.broadcast_to(value.data, pointers.data.shape)
            watched.store(addresses, size, before[mask_data], values[mask_data])
        return store(self, pointers, value, handle(mask_data, mask), *rest)

    def watched_rmw(self, operation, pointers, value, mask, semantics, scope):
        size = value.data.dtype.itemsize
        mask_data = np.broadcast_to(mask.data.astype(bool, copy=False), pointers.data.shape)
        addresses = pointers.data[mask_data]
        if addresses.size:
            if not watched._launch.inside(addresses, size).all():
                raise IndexError("an atomic outside of all arguments")
            watched.atomic(addresses, size, value.data.dtype.kind == "f", str(semantics).upper(), str(scope).upper())
        return rmw(self, operation, pointers, value, mask, semantics, scope)

    def watched_cast(self, source, target):
        values = source.data
        if source.dtype.scalar == tl.bfloat16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        watched.cast(values, target.scalar.int_bitwidth, target.scalar.is_int_signed())
        return self.cast_impl(source, target)

    yield patch.multiple(executor, _init_args_hst=watched_init, _restore_args_dev=watched_restore)
    yield patch.multiple(
        builder,
        set_grid_dim=watched_grid,
        set_grid_idx=lambda self, *_: set_grid_idx(self, *watched.next_program()),
        create_masked_load=watched_load,
        create_masked_store=watched_store,
        create_atomic_rmw=watched_rmw,
        create_barrier=lambda self: watched.barrier(),
        create_fp_to_si=watched_cast,
        create_fp_to_ui=watched_cast,
        create_maxnumf=lambda self, one, other: self.binary_op(one, other, np.fmax),
        create_minnumf=lambda self, one, other: self.binary_op(one, other, np.fmin),
    )
    if hasattr(builder, "get_cache_policy"):  # Triton 3.9 forgets here what 3.6 passes on
        yield patch.object(builder, "get_cache_policy", lambda self, modifier, eviction: modifier)
    for module in (launch, attention, denoise):
        yield patch.object(module, "torch", Filled(watched.garbage))


@contextmanager
def interpreted(order: str | int = "ascending", garbage: int = 0) -> Iterator[Watched]:
    """Kernels run under watch; faults are an ``AssertionError`` at the end.

    Args:
        order: of the programs of a launch: ``ascending``, ``descending`` or, shuffled, a seed.
        garbage: what fresh memory and masked lanes hold: 0 is absurd, 1 plausible.
    """
    watched = Watched(order, garbage)
    with ExitStack() as stack:
        for one in _patches(watched):
            stack.enter_context(one)
        yield watched
    assert not watched.faults, "\n".join(watched.faults.values())
