"""Threads in lockstep: registers as arrays over all threads of some programs, and who runs next.

A *program* is what Triton calls so, a block of threads; a *lane* is one thread. The lanes of many programs run at once, always those that are
furthest behind, so that branches come together again and programs of a launch are truly interleaved.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .memory import AccessError, Global, Shared
from .pending import Pending
from .program import Instruction, Program

__all__ = ["FaultError", "Machine", "Step"]

#: What runs an instruction for the lanes of an index.
Step = Callable[[np.ndarray], None]

WARP = 32
_WIDTHS = {"p": np.bool_, "rs": np.uint16, "r": np.uint32, "rd": np.uint64}


class FaultError(AssertionError):
    """Something that a GPU would do wrong, or differently every time."""


@dataclass
class Machine:
    """Some programs of a launch in the middle of their work."""

    program: Program
    arguments: dict[str, bytes]
    grid: tuple[int, int, int]
    ids: np.ndarray  # [programs, 3], which programs of the grid run here
    memory: Global
    shared_bytes: int
    seed: int
    fence_copies: bool = True  # cp.async too needs fence.proxy.async before a product of a warpgroup may read it
    executed: Counter = field(default_factory=Counter)  # of every instruction, how many warps ran it

    def __post_init__(self) -> None:
        self.threads = self.program.threads
        self.lanes = len(self.ids) * self.threads
        self.random = np.random.default_rng(self.seed)
        self.lane = np.arange(self.lanes)
        self.block = self.lane // self.threads
        self.warp = self.lane // WARP
        self.shared = Shared(len(self.ids), self.shared_bytes, self.block, self.warp, self.random)
        self.registers: dict[str, np.ndarray] = {}
        self.copies = Pending(self.lanes)  # into shared memory
        self.warpgroups = None  # warpgroups.py keeps here what they have begun

    # Operands

    def target(self, operand: str, dtype: type) -> np.ndarray:
        """A register as an array over lanes, of ``dtype`` or wider."""
        if operand == "_":
            return np.empty(self.lanes, dtype)
        kind = re.fullmatch(r"%([a-z]+)\d+", operand)[1]
        if operand not in self.registers:
            width = _WIDTHS[kind]
            garbage = self.random.integers(0, 2, self.lanes).astype(bool) if kind == "p" else np.full(self.lanes, np.iinfo(width).max // 3, width)
            self.registers[operand] = garbage
        register = self.registers[operand]
        if register.itemsize == np.dtype(dtype).itemsize:
            return register.view(dtype)
        return register

    def source(self, operand: str, dtype: type) -> np.ndarray:
        """An operand as an array over lanes."""
        if operand in ("%tid.x", "%laneid", "%warpid") or operand.startswith(("%ctaid", "%ntid", "%nctaid")):
            return self._special(operand).astype(dtype)
        if operand.startswith("%"):
            register = self.target(operand, dtype)
            return register if register.dtype == dtype else _Narrowed(register, dtype)
        return np.broadcast_to(self._literal(operand, np.dtype(dtype)), (self.lanes,))

    def _special(self, name: str) -> np.ndarray:
        axis = "xyz".index(name[-1]) if "." in name else 0
        if name.startswith("%ctaid"):
            return self.ids[self.block, axis]
        values = {
            "%tid.x": self.lane % self.threads,
            "%laneid": self.lane % WARP,
            "%warpid": self.lane % self.threads // WARP,
        }
        if name in values:
            return values[name]
        number = self.grid[axis] if name.startswith("%nctaid") else self.threads if name == "%ntid.x" else 1
        return np.full(self.lanes, number)

    def _literal(self, text: str, dtype: np.dtype) -> np.ndarray:
        if text == "global_smem":
            return np.array(0, dtype)
        if text.startswith("0f"):
            return np.frombuffer(struct.pack("<I", int(text[2:], 16)), np.float32).view(dtype)[0]
        if text.startswith("0d"):
            return np.frombuffer(struct.pack("<Q", int(text[2:], 16)), np.float64).view(dtype)[0]
        number = int(text.rstrip("U"), 0)
        if dtype.kind == "b":
            return np.array(number != 0)
        return np.frombuffer((number % 2 ** (8 * dtype.itemsize)).to_bytes(dtype.itemsize, "little"), dtype)[0]

    def fault(self, instruction: Instruction, what: str) -> FaultError:
        """What is wrong, and where."""
        return FaultError(f"{self.program.name}: {instruction}: {what}")

    # Scheduling

    def run(self, compile_: Callable[[Machine, Instruction], Step]) -> None:
        """Run all lanes to their end; ``compile_`` gives the step of every instruction but those that move lanes."""
        instructions = self.program.instructions
        steps: list[Step | None] = [None] * len(instructions)
        groups: dict[int, np.ndarray] = {0: self.lane}
        waiting: dict[int, np.ndarray] = {}
        alive = np.full(len(self.ids), self.threads)

        def join(place: int, lanes: np.ndarray) -> None:
            if len(lanes):
                groups[place] = np.sort(np.concatenate([groups[place], lanes])) if place in groups else lanes

        while groups or waiting:
            if not groups:
                place = min(waiting)
                raise self.fault(instructions[place], f"a barrier that {len(waiting[place])} threads reach and others do not")
            place = min(groups)
            lanes = groups.pop(place)
            end = min(groups, default=len(instructions))
            while place < end:
                instruction = instructions[place]
                taken = self._guarded(instruction, lanes)
                self.executed[instruction] += len(np.unique(self.warp[taken])) if len(taken) < self.lanes else self.lanes // WARP
                place += 1
                root = instruction.opcode.partition(".")[0]
                if root == "bra":
                    join(self.program.labels[instruction.operands[-1]], taken)
                    lanes = self._without(lanes, taken)
                    end = min(groups, default=len(instructions))
                elif root in ("ret", "exit"):
                    np.subtract.at(alive, self.block[taken], 1)
                    lanes = self._without(lanes, taken)
                elif root == "bar":
                    self._arrive(instruction, place, lanes, taken, alive, waiting, join)
                    lanes = lanes[:0]
                    end = min(groups, default=len(instructions))
                elif len(taken):
                    if steps[place - 1] is None:
                        steps[place - 1] = compile_(self, instruction)
                    try:
                        steps[place - 1](taken)
                    except AccessError as violation:
                        raise self.fault(instruction, str(violation)) from None
                if not len(lanes):
                    break
            join(place, lanes)

    def _guarded(self, instruction: Instruction, lanes: np.ndarray) -> np.ndarray:
        guard = instruction.guard
        if guard is None:
            return lanes
        truth = self.target(guard.lstrip("!"), np.bool_)[lanes]
        return lanes[~truth if guard.startswith("!") else truth]

    def _without(self, lanes: np.ndarray, taken: np.ndarray) -> np.ndarray:
        return lanes[:0] if len(taken) == len(lanes) else np.setdiff1d(lanes, taken, assume_unique=True)

    def _arrive(self, instruction, place, lanes, taken, alive, waiting, join) -> None:
        """Lanes that reach a barrier wait there for the rest of their program."""
        if len(taken) != len(lanes):
            raise self.fault(instruction, "a barrier under a predicate that not all threads share")
        arrived = np.concatenate([waiting.pop(place - 1, lanes[:0]), taken])
        count = np.bincount(self.block[arrived], minlength=len(alive))
        complete = (count == alive) & (count > 0)
        if (complete & (alive < self.threads)).any():
            raise self.fault(instruction, "a barrier that some threads of the program left out by ending")
        released = complete[self.block[arrived]]
        self.shared.epoch[complete] += 1
        if not released.all():
            waiting[place - 1] = arrived[~released]
        join(place, np.sort(arrived[released]))


class _Narrowed:
    """The low bits of a wider register."""

    def __init__(self, register: np.ndarray, dtype: type):
        self.register, self.dtype = register, np.dtype(dtype)

    def __getitem__(self, lanes: np.ndarray) -> np.ndarray:
        return self.register[lanes].astype(f"u{self.dtype.itemsize}").view(self.dtype)
