"""What the 32 threads of a warp do together: shuffles, reductions, matrices."""

from __future__ import annotations

import numpy as np

from .access import _address, _vector
from .arithmetic import DTYPES, bf16_value
from .machine import WARP, Machine, Step
from .memory import AccessError
from .program import Instruction

__all__ = ["warp_step"]

_LANE = np.arange(WARP)


def _whole_warps(lanes: np.ndarray) -> np.ndarray:
    """``lanes`` as rows of 32; all of a warp or none."""
    if len(lanes) % WARP or (lanes.reshape(-1, WARP) - lanes[::WARP, None] != _LANE).any() or (lanes[::WARP] % WARP).any():
        raise AccessError("not all threads of a warp take part")
    return lanes.reshape(-1, WARP)


def _shuffle(machine: Machine, instruction: Instruction) -> Step:
    mode = instruction.parts[2]
    if instruction.operands[3] != ("0" if mode == "up" else "31") or instruction.operands[4] != "-1":
        raise NotImplementedError(str(instruction))
    out, value = machine.target(instruction.operands[0], np.uint32), machine.source(instruction.operands[1], np.uint32)
    distance = machine.source(instruction.operands[2], np.uint32)

    def run(lanes):
        warps = _whole_warps(lanes)
        b = distance[lanes].reshape(-1, WARP).astype(np.int64)
        origin = {"bfly": _LANE ^ b, "up": _LANE - b, "down": _LANE + b, "idx": b & 31}[mode]
        origin = np.where((origin < 0) | (origin >= WARP), _LANE, origin)
        out[lanes] = np.take_along_axis(value[lanes].reshape(warps.shape), origin, 1).ravel()

    return run


def _reduce(machine: Machine, instruction: Instruction) -> Step:
    function, dtype = {"add": np.add, "min": np.minimum, "max": np.maximum}[instruction.parts[2]], DTYPES[instruction.parts[3]]
    out, value = machine.target(instruction.operands[0], dtype), machine.source(instruction.operands[1], dtype)
    members = machine.source(instruction.operands[2], np.uint32)

    def run(lanes):
        warps = _whole_warps(lanes)
        if (members[lanes] != 0xFFFFFFFF).any():
            raise NotImplementedError("redux.sync of a part of a warp")
        out[lanes] = np.repeat(function.reduce(value[lanes].reshape(warps.shape), axis=1, dtype=dtype), WARP)

    return run


def _ldmatrix(machine: Machine, instruction: Instruction) -> Step:
    """Matrices of 8 × 8 half-precision numbers: thread 8m + r has the address of row r of matrix m."""
    outs = [machine.target(part, np.uint32) for part in _vector(instruction.operands[0])]
    base, offset = _address(machine, instruction.operands[1], np.uint32)
    transposed = "trans" in instruction.parts

    def run(lanes):
        warps = _whole_warps(lanes)
        addresses = (base[lanes] + offset).reshape(warps.shape)
        for m, out in enumerate(outs):
            rows = machine.shared.load(warps[:, 8 * m : 8 * m + 8].ravel(), addresses[:, 8 * m : 8 * m + 8].ravel(), 4, 4)
            matrix = np.ascontiguousarray(np.stack(rows, -1)).view(np.uint16).reshape(-1, 8, 8)
            if transposed:
                matrix = matrix.transpose(0, 2, 1)
            # Thread t has row t / 4, columns 2 (t % 4) and the next.
            out[lanes] = np.ascontiguousarray(matrix.reshape(-1, 64)).view(np.uint32).ravel()

    return run


def _stmatrix(machine: Machine, instruction: Instruction) -> Step:
    base, offset = _address(machine, instruction.operands[0], np.uint32)
    sources = [machine.source(part, np.uint32) for part in _vector(instruction.operands[1])]
    if "trans" in instruction.parts:
        raise NotImplementedError(str(instruction))

    def run(lanes):
        warps = _whole_warps(lanes)
        addresses = (base[lanes] + offset).reshape(warps.shape)
        for m, source in enumerate(sources):
            rows = source[lanes].reshape(-1, 8, 4)
            machine.shared.store(
                warps[:, 8 * m : 8 * m + 8].ravel(), addresses[:, 8 * m : 8 * m + 8].ravel(), 4, [rows[..., n].ravel() for n in range(4)]
            )

    return run


def _halves(words: np.ndarray, kind: str) -> np.ndarray:
    """``[..., n]`` words as ``[..., 2 n]`` float32."""
    bits = np.ascontiguousarray(words).view(np.uint16)
    return bf16_value(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def _mma(machine: Machine, instruction: Instruction) -> Step:
    """16 × 8 += 16 × 16 by 16 × 8."""
    if "m16n8k16" not in instruction.parts or instruction.parts[-1] != "f32":
        raise NotImplementedError(str(instruction))
    kind = instruction.parts[-2]
    outs = [machine.target(part, np.float32) for part in _vector(instruction.operands[0])]
    a, b = ([machine.source(part, np.uint32) for part in _vector(operand)] for operand in instruction.operands[1:3])
    c = [machine.source(part, np.float32) for part in _vector(instruction.operands[3])]
    group, pair = _LANE // 4, _LANE % 4 * 2

    def run(lanes):
        count = len(_whole_warps(lanes))
        left, right, total = np.empty((count, 16, 16), np.float32), np.empty((count, 16, 8), np.float32), np.empty((count, 16, 8), np.float32)
        for n, register in enumerate(a):
            values = _halves(register[lanes].reshape(count, WARP, 1), kind)
            for half in range(2):
                left[:, group + 8 * (n % 2), pair + half + 8 * (n // 2)] = values[..., half]
        for n, register in enumerate(b):
            values = _halves(register[lanes].reshape(count, WARP, 1), kind)
            for half in range(2):
                right[:, pair + half + 8 * n, group] = values[..., half]
        for n, register in enumerate(c):
            total[:, group + 8 * (n // 2), pair + n % 2] = register[lanes].reshape(count, WARP)
        total = (total + left.astype(np.float64) @ right).astype(np.float32)
        for n, out in enumerate(outs):
            out[lanes] = total[:, group + 8 * (n // 2), pair + n % 2].ravel()

    return run


_STEPS = {"shfl": _shuffle, "redux": _reduce, "ldmatrix": _ldmatrix, "stmatrix": _stmatrix, "mma": _mma}


def warp_step(machine: Machine, instruction: Instruction) -> Step | None:
    """The step of an instruction of a whole warp; ``None`` if it is none."""
    step = _STEPS.get(instruction.parts[0])
    return None if step is None else step(machine, instruction)
