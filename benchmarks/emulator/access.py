"""What instructions do with memory."""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import DTYPES
from .machine import Machine, Step
from .memory import POISON
from .program import Instruction

__all__ = ["access_step"]


def _address(machine: Machine, operand: str, dtype: type) -> tuple:
    """Register or symbol, and offset, of ``[register + offset]``."""
    base, offset = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand).groups()
    return machine.source(base, dtype), dtype(int(offset or "0", 0) % 2 ** (8 * np.dtype(dtype).itemsize))


def _vector(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _parameter(machine: Machine, instruction: Instruction) -> Step:
    kind = instruction.parts[-1]
    out = machine.target(instruction.operands[0], DTYPES[kind])
    name, offset = re.fullmatch(r"\[(\w+)(?:\+(\d+))?\]", instruction.operands[1]).groups()
    raw = machine.arguments[name][int(offset or 0) :][: DTYPES[kind].itemsize]
    value = np.frombuffer(raw, DTYPES[kind])[0]
    if DTYPES[kind].kind == "i":
        value = np.array(value).astype(f"i{out.itemsize}").view(f"u{out.itemsize}")

    def run(lanes):
        out[lanes] = value if out.dtype.kind != "i" else np.array(value).view(out.dtype)

    return run


def _load(machine: Machine, instruction: Instruction) -> Step:
    space, kind = instruction.parts[1].partition(":")[0], instruction.parts[-1]
    dtype = DTYPES[kind]
    outs = [machine.target(part, dtype) for part in _vector(instruction.operands[0])]
    base, offset = _address(machine, instruction.operands[1], np.uint32 if space == "shared" else np.uint64)

    def run(lanes):
        addresses = base[lanes] + offset
        if space == "shared":
            values = machine.shared.load(lanes, addresses, dtype.itemsize, len(outs))
        else:
            values = machine.memory.load(addresses, dtype.itemsize, len(outs), machine.warp[lanes])
        for out, value in zip(outs, values, strict=True):
            if dtype.kind == "i":
                value = value.view(dtype).astype(f"i{out.itemsize}").view(out.dtype)
            out[lanes] = value.view(out.dtype) if value.dtype.itemsize == out.itemsize else value

    return run


def _store(machine: Machine, instruction: Instruction) -> Step:
    space, kind = instruction.parts[1].partition(":")[0], instruction.parts[-1]
    raw = np.dtype(f"u{DTYPES[kind].itemsize}")
    base, offset = _address(machine, instruction.operands[0], np.uint32 if space == "shared" else np.uint64)
    sources = [machine.source(part, raw) for part in _vector(instruction.operands[1])]

    def run(lanes):
        addresses, values = base[lanes] + offset, [source[lanes] for source in sources]
        if space == "shared":
            machine.shared.store(lanes, addresses, raw.itemsize, values)
        else:
            machine.memory.store(addresses, raw.itemsize, values, machine.warp[lanes])

    return run


def _atomic(machine: Machine, instruction: Instruction) -> Step:
    """Lanes in an order of chance: nothing may depend on it."""
    operation, dtype = instruction.parts[-2], DTYPES[instruction.parts[-1]]
    if operation != "add" or instruction.parts[1] != "global":
        raise NotImplementedError(str(instruction))
    out = machine.target(instruction.operands[0], dtype)
    base, offset = _address(machine, instruction.operands[1], np.uint64)
    source = machine.source(instruction.operands[2], dtype)

    def run(lanes):
        for lane in machine.random.permutation(lanes):
            one = np.array([lane])
            address = base[one] + offset
            before = machine.memory.load(address, dtype.itemsize, 1, machine.warp[one])[0].view(dtype)
            machine.memory.store(address, dtype.itemsize, [before + source[one]], machine.warp[one])
            out[one] = before

    return run


def _copy_async(machine: Machine, instruction: Instruction) -> Step:
    """Copies arrive when their group is waited for, and not before; until then nobody may count on what is there."""
    what = instruction.parts[2]
    if what == "commit_group":
        return machine.copies.commit
    if what == "wait_group":
        most = int(instruction.operands[0])
        return lambda lanes: machine.copies.wait(lanes, most)
    if what not in ("ca", "cg"):
        raise NotImplementedError(str(instruction))
    to, to_offset = _address(machine, instruction.operands[0], np.uint32)
    origin, origin_offset = _address(machine, instruction.operands[1], np.uint64)
    size = int(instruction.operands[2], 0)
    given = machine.source(instruction.operands[3], np.uint32) if len(instruction.operands) > 3 else None

    def run(lanes):
        places, addresses = to[lanes] + to_offset, origin[lanes] + origin_offset
        wanted = np.full(len(lanes), size) if given is None else given[lanes]
        if ((wanted != size) & (wanted != 0)).any():
            raise NotImplementedError("cp.async of a part")
        machine.shared.store(lanes, places, 4, [np.full(len(lanes), POISON)] * (size // 4), machine.fence_copies)

        def copy(which):
            threads, whole = lanes[which], wanted[which] == size
            words = [np.zeros(len(threads), np.uint32) for _ in range(size // 4)]
            values = machine.memory.load(addresses[which][whole], 4, size // 4, machine.warp[threads[whole]])
            for word, value in zip(words, values, strict=True):
                word[whole] = value
            machine.shared.store(threads, places[which], 4, words, machine.fence_copies)

        machine.copies.begin(lanes, copy)

    return run


def access_step(machine: Machine, instruction: Instruction) -> Step | None:
    """The step of a load, a store or an atomic; ``None`` if it is none."""
    root, *rest = instruction.parts
    if root == "ld":
        return _parameter(machine, instruction) if rest[0] == "param" else _load(machine, instruction)
    if root == "st":
        return _store(machine, instruction)
    if root == "atom":
        return _atomic(machine, instruction)
    if root == "cp":
        return _copy_async(machine, instruction)
    return None
