"""What the 128 threads of a warpgroup do together on Hopper: products of matrices in shared memory, worked out while the threads go on.

A product is worked out when its group is waited for, and no earlier: shared memory is read then, and the sums become visible then. Until then
their registers hold NaN, so that a kernel that reads them too early is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from .access import _vector
from .machine import Machine, Step
from .memory import POISON, AccessError
from .pending import Pending
from .program import Instruction
from .warps import _halves

__all__ = ["warpgroup_step"]

WARPGROUP = 128
_ROWS, _DEPTH = 64, 16
# Thread t has row 16 (t / 32) + t % 32 / 4 and the one 8 below, columns 2 (t % 4) and the next, of every 8 columns; sums and the left matrix alike.
_ROW = 16 * (np.arange(WARPGROUP) // 32) + np.arange(WARPGROUP) % 32 // 4
_PAIR = np.arange(WARPGROUP) % 4 * 2
#: Bits of a descriptor that mean nothing: something there has run over from the field below.
_UNUSED = np.uint64(0x3FF1_C000_C000_C000)


@dataclass
class _Sums:
    """Sums of products under way, behind the registers that will hold them."""

    values: np.ndarray  # [registers, lanes]
    running: np.ndarray  # [lanes], how many products


@dataclass
class _Warpgroups:
    """What the warpgroups of a machine have begun."""

    machine: Machine
    products: Pending = field(init=False)
    sums: dict[str, _Sums] = field(default_factory=dict)
    settled: dict[str, np.ndarray] = field(default_factory=dict)  # of products' registers, what the last wgmma.fence saw, or a product left

    def __post_init__(self) -> None:
        self.products = Pending(self.machine.lanes)
        self.fenced = np.full(self.machine.lanes, -1)  # when a thread last let products see what was stored to shared memory
        for instruction in self.machine.program.instructions:
            if instruction.opcode.startswith("wgmma.mma_async"):
                for name in (part for operand in instruction.operands[:2] if operand.startswith("{") for part in _vector(operand)):
                    self.settled[name] = ~self.machine.target(name, np.uint32)  # no fence yet

    def fence(self, lanes: np.ndarray) -> None:
        """What threads wrote to registers is there for products."""
        _whole(lanes)
        for name, seen in self.settled.items():
            seen[lanes] = self.machine.target(name, np.uint32)[lanes]

    def fence_memory(self, lanes: np.ndarray) -> None:
        """What threads wrote to shared memory is there for products."""
        self.fenced[lanes] = self.machine.shared.epoch[self.machine.block[lanes]]


def _whole(lanes: np.ndarray) -> np.ndarray:
    """``lanes`` as rows of 128; all of a warpgroup or none."""
    if len(lanes) % WARPGROUP or (lanes[::WARPGROUP] % WARPGROUP).any() or (np.diff(lanes.reshape(-1, WARPGROUP)) != 1).any():
        raise AccessError("not all threads of a warpgroup take part")
    return lanes.reshape(-1, WARPGROUP)


def _shared_by_all(values: np.ndarray, what: str) -> np.ndarray:
    """One of every warpgroup."""
    values = values.reshape(-1, WARPGROUP)
    if (values != values[:, :1]).any():
        raise AccessError(f"threads of a warpgroup have different {what}")
    return values[:, 0]


def _places(registers: int, halves: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns ``[registers, 128]`` of the numbers that the threads of a warpgroup hold; of the lower half, if a register holds two."""
    n = np.arange(registers)[:, None]
    if halves:
        return _ROW + 8 * (n % 2), 8 * (n // 2) + _PAIR
    return _ROW + 8 * (n % 4 // 2), 8 * (n // 4) + _PAIR + n % 2


def _addresses(descriptors: np.ndarray, size: int, transposed: bool) -> np.ndarray:
    """Where 16 bytes each of a matrix of ``size`` rows (of A, columns of B) and a depth of 16 lie.

    ``[groups, size, 2]`` with 8 elements along the depth, or ``[groups, size / 8, 16]`` with 8 along the rows if ``transposed``.
    """
    bits = descriptors.astype(np.int64)[:, None, None]
    start, leading, stride = ((bits >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    base, mode = bits >> 49 & 7, bits >> 62 & 3
    wide = np.array([1, 8, 4, 2])[mode]  # units of 16 bytes in a line of the pattern, which has 8 lines
    if transposed:
        unit, line = np.arange(size // 8)[:, None], np.arange(_DEPTH)
        beside, below = np.where(mode == 0, stride, leading), np.where(mode == 0, leading, stride)
        place = unit % wide * 16 + unit // wide * beside + line % 8 * wide * 16 + line // 8 * below
    else:
        line, unit = np.arange(size)[:, None], np.arange(_DEPTH // 8)
        place = line % 8 * wide * 16 + line // 8 * stride + unit * np.where(mode == 0, leading, 16)
    address = start + place
    # Lines are 128 bytes of memory each, whatever the mode: the 16 bytes of a line are exchanged by which line of the pattern it is.
    return address ^ ((address >> 7) - base & wide - 1) << 4


@dataclass
class _Product:
    """64 × n += 64 × 16 by 16 × n."""

    machine: Machine
    state: _Warpgroups
    instruction: Instruction

    def __post_init__(self) -> None:
        machine, (d, a, b, scale, *flags) = self.machine, self.instruction.operands
        shape, *kinds = self.instruction.parts[4:]
        if not re.fullmatch(r"m64n\d+k16", shape) or kinds not in (["f32", "bf16", "bf16"], ["f32", "f16", "f16"]):
            raise NotImplementedError(str(self.instruction))
        self.width, self.kind = int(shape[4:-3]), kinds[-1]
        self.names, self.fragments = _vector(d), _vector(a) if a.startswith("{") else []
        self.out = [machine.target(name, np.float32) for name in self.names]
        self.left = [machine.target(name, np.uint32) for name in self.fragments]
        self.descriptors = [None if self.left else machine.source(a, np.uint64), machine.source(b, np.uint64)]
        self.scale = machine.source(scale, np.bool_)
        self.sign = int(flags[0]) * int(flags[1])
        self.transposed = [flag == "1" for flag in ["0", *flags[2:]][-2:]]  # a matrix in registers has no such flag
        shape = (len(self.names), machine.lanes)
        self.sums = self.state.sums.setdefault(d, _Sums(np.zeros(shape, np.float32), np.zeros(machine.lanes, np.int64)))

    def _settle(self, lanes: np.ndarray) -> None:
        """The product, not another instruction, has written the sums."""
        for name, register in zip(self.names, self.out, strict=True):
            self.state.settled[name][lanes] = register.view(np.uint32)[lanes]

    def begin(self, lanes: np.ndarray) -> None:
        """Take what registers hold, and go on."""
        groups = _whole(lanes)
        for name in (*self.names, *self.fragments):
            if (self.machine.target(name, np.uint32)[lanes] != self.state.settled[name][lanes]).any():
                raise AccessError(f"no wgmma.fence since {name} was written")
        fresh = lanes[self.sums.running[lanes] == 0]
        for register, value in zip(self.out, self.sums.values, strict=True):
            if (register.view(np.uint32)[fresh] == POISON).any():
                raise AccessError("sums that another product has not finished")
            value[fresh] = register[fresh]
            register.view(np.uint32)[lanes] = POISON
        self.sums.running[lanes] += 1
        self._settle(lanes)
        keep = _shared_by_all(self.scale[lanes], "predicates")
        left = np.stack([register[lanes] for register in self.left]) if self.left else None
        descriptors = [None if given is None else _shared_by_all(given[lanes], "descriptors") for given in self.descriptors]
        if any((given & _UNUSED).any() for given in descriptors if given is not None):
            raise AccessError("a descriptor of a matrix whose fields run over")
        times = self.machine.shared.epoch[self.machine.block[groups[:, 0]]], self.state.fenced[groups].min(1)

        def finish(which: np.ndarray) -> None:
            chosen = which[::WARPGROUP] // WARPGROUP
            then = [time[chosen] for time in times]
            a, b = (None if given is None else given[chosen] for given in descriptors)
            threads = lanes[which]
            matrix = self._left(threads, left[:, which]) if a is None else self._read(threads, a, 0, *then)
            self._finish(threads, keep[chosen], matrix, self._read(threads, b, 1, *then))

        self.state.products.begin(lanes, finish)

    def _left(self, lanes: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """The left matrix ``[groups, 64, 16]`` from registers."""
        if any((register[lanes] != value).any() for register, value in zip(self.left, taken, strict=True)):
            raise AccessError(f"the left matrix of {self.instruction.source} was changed before the product was waited for")
        matrix = np.empty((len(lanes) // WARPGROUP, _ROWS, _DEPTH), np.float32)
        rows, columns = _places(len(taken), halves=True)
        values = _halves(taken.reshape(len(taken), -1, WARPGROUP, 1), self.kind)
        for half in range(2):
            matrix[:, rows, columns + half] = values[..., half].transpose(1, 0, 2)
        return matrix

    def _read(self, lanes: np.ndarray, descriptors: np.ndarray, side: int, begun: np.ndarray, fenced: np.ndarray) -> np.ndarray:
        """A matrix ``[groups, rows of A or columns of B, 16]`` from shared memory."""
        transposed, size = self.transposed[side], self.width if side else _ROWS
        addresses = _addresses(descriptors, size, transposed)
        threads, begun, fenced = (np.broadcast_to(of[:, None, None], addresses.shape) for of in (lanes[::WARPGROUP], begun, fenced))
        bits = self.machine.shared.load_later(threads, addresses, begun, fenced)
        bits = bits.swapaxes(2, 3) if transposed else bits
        return _halves(np.ascontiguousarray(bits).reshape(len(descriptors), size, _DEPTH), self.kind)

    def _finish(self, lanes: np.ndarray, keep: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        if any((register.view(np.uint32)[lanes] != POISON).any() for register in self.out):
            raise AccessError(f"the sums of {self.instruction.source} were written before the product was waited for")
        rows, columns = _places(len(self.out), halves=False)
        total = np.empty((len(keep), _ROWS, self.width), np.float32)
        total[:, rows, columns] = self.sums.values[:, lanes].reshape(len(self.out), -1, WARPGROUP).transpose(1, 0, 2)
        total[~keep] = 0
        product = left.astype(np.float64) @ right.swapaxes(1, 2)
        total = (total + self.sign * product).astype(np.float32)
        self.sums.values[:, lanes] = total[:, rows, columns].transpose(1, 0, 2).reshape(len(self.out), -1)
        self.sums.running[lanes] -= 1
        done = lanes[self.sums.running[lanes] == 0]
        for register, value in zip(self.out, self.sums.values, strict=True):
            register[done] = value[done]
        self._settle(done)


def warpgroup_step(machine: Machine, instruction: Instruction) -> Step | None:
    """The step of an instruction of a whole warpgroup, or of the fence that such instructions need; ``None`` if it is none."""
    fences = instruction.opcode.startswith("fence.proxy.async")
    if instruction.parts[0] != "wgmma" and not fences:
        return None
    if machine.warpgroups is None:
        machine.warpgroups = _Warpgroups(machine)
    state: _Warpgroups = machine.warpgroups
    if fences:
        return state.fence_memory
    what = instruction.parts[1]
    if what == "fence":
        return state.fence
    if what == "commit_group":
        return lambda lanes: state.products.commit(_whole(lanes).ravel())
    if what == "wait_group":
        most = int(instruction.operands[0])
        return lambda lanes: state.products.wait(_whole(lanes).ravel(), most)
    if what == "mma_async":
        return _Product(machine, state, instruction).begin
    raise NotImplementedError(str(instruction))
