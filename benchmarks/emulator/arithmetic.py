"""What instructions do with the registers of one lane."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .machine import Machine, Step
from .program import Instruction

__all__ = ["DTYPES", "arithmetic_step", "bf16_bits", "bf16_value"]

DTYPES = {f"{kind}{bits}": np.dtype(f"{letter}{bits // 8}") for kind, letter in (("u", "u"), ("b", "u"), ("s", "i")) for bits in (8, 16, 32, 64)}
DTYPES |= {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16), "pred": np.dtype(bool)}

Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def bf16_value(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_bits(value: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32, to nearest even."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def _flushed(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < np.float32(2.0**-126), np.copysign(np.float32(0), value), value)


def _shift(left: bool) -> Binary:
    def run(a, b):
        bits = 8 * a.dtype.itemsize
        count = np.minimum(b, bits - 1).astype(a.dtype)
        shifted = a << count if left else a >> count
        return np.where((b >= bits) & (left | (a.dtype.kind == "u")), 0, shifted)

    return run


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    if (b == 0).any():
        raise ZeroDivisionError("an integer division by 0 gives anything at all")
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (b < 0))) if a.dtype.kind == "i" else quotient


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - _divide(a, b) * b


def _nan_first(f: Binary) -> Binary:
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), f(a, b))


_FLOAT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide, "min": np.fmin, "max": np.fmax}
_INTEGER = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide, "rem": _remainder, "min": np.minimum, "max": np.maximum,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor, "shl": _shift(left=True), "shr": _shift(left=False),
}  # fmt: skip
_UNARY = {
    "neg": operator.neg, "not": lambda a: ~a, "abs": np.abs, "sqrt": np.sqrt, "popc": lambda a: np.bitwise_count(a),
    "ex2": lambda a: np.exp2(a.astype(np.float64)), "lg2": lambda a: np.log2(a.astype(np.float64)), "rcp": lambda a: 1 / a,
    "rsqrt": lambda a: 1 / np.sqrt(a.astype(np.float64)), "tanh": np.tanh,
}  # fmt: skip
_COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


def _compare(name: str, dtype: np.dtype) -> Binary:
    """``ne`` is false for NaN, ``neu`` and the like are true."""
    if dtype.kind != "f":
        return _COMPARE[name]
    unordered = name.endswith("u")
    compare = _COMPARE[name.removesuffix("u")]

    def run(a, b):
        nan = np.isnan(a) | np.isnan(b)
        return (compare(a, b) | nan) if unordered else (compare(a, b) & ~nan)

    return run


def _setp(machine: Machine, instruction: Instruction) -> Step:
    name, kind = instruction.parts[1], instruction.parts[-1]
    if len(instruction.parts) != 3:
        raise NotImplementedError(str(instruction))
    out = [machine.target(operand, bool) for operand in instruction.operands[0].split("|")]
    if kind in ("bf16", "bf16x2", "f16"):
        raw = np.uint32 if kind == "bf16x2" else np.uint16
        a, b = (machine.source(operand, raw) for operand in instruction.operands[1:])
        widen = (lambda bits: bits.view(np.float16).astype(np.float32)) if kind == "f16" else bf16_value
        compare = _compare(name, np.dtype(np.float32))

        def halves(lanes):
            for n, predicate in enumerate(out):
                predicate[lanes] = compare(*(widen((side[lanes] >> (16 * n)).astype(np.uint16)) for side in (a, b)))

        return halves
    dtype = DTYPES[kind]
    a, b = (machine.source(operand, dtype) for operand in instruction.operands[1:])
    compare = _compare(name, dtype)

    def run(lanes):
        out[0][lanes] = compare(a[lanes], b[lanes])

    return run


def _mov(machine: Machine, instruction: Instruction) -> Step:
    kind = instruction.parts[1]
    dtype = DTYPES[kind]
    to, value = instruction.operands
    if to.startswith("{") or value.startswith("{"):
        parts = [part.strip() for part in (to if to.startswith("{") else value)[1:-1].split(",")]
        bits = 8 * dtype.itemsize // len(parts)
        small = DTYPES[f"b{bits}"]
        if to.startswith("{"):
            whole = machine.source(value, dtype)
            outs = [machine.target(part, small) for part in parts]

            def split(lanes):
                values = whole[lanes]
                for n, out in enumerate(outs):
                    out[lanes] = (values >> dtype.type(n * bits)).astype(small)

            return split
        sources, out = [machine.source(part, small) for part in parts], machine.target(to, dtype)

        def join(lanes):
            out[lanes] = sum((source[lanes].astype(dtype) << dtype.type(n * bits) for n, source in enumerate(sources)), np.zeros(len(lanes), dtype))

        return join
    out, source = machine.target(to, dtype), machine.source(value, dtype)

    def run(lanes):
        out[lanes] = source[lanes]

    return run


def _to_integer(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Saturated; NaN is 0."""
    limits = np.iinfo(dtype)
    wide = np.nan_to_num(value.astype(np.float64), nan=0.0, posinf=float(limits.max), neginf=float(limits.min))
    return np.where(wide >= limits.max, limits.max, np.where(wide <= limits.min, limits.min, wide)).astype(dtype)


def _cvt(machine: Machine, instruction: Instruction) -> Step:
    *modifiers, to, origin = instruction.parts[1:]
    if to in ("bf16x2", "f16x2"):
        out = machine.target(instruction.operands[0], np.uint32)
        high, low = (machine.source(operand, np.float32) for operand in instruction.operands[1:])
        half = bf16_bits if to == "bf16x2" else lambda value: value.astype(np.float16).view(np.uint16)

        def pack(lanes):
            out[lanes] = half(high[lanes]).astype(np.uint32) << 16 | half(low[lanes])

        return pack
    out = machine.target(instruction.operands[0], DTYPES[to])
    source = machine.source(instruction.operands[1], DTYPES[origin])
    whole = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}
    rounding = next((whole[name] for name in modifiers if name in whole), None)

    def run(lanes):
        value = source[lanes]
        if origin == "bf16":
            value = bf16_value(value)
        if rounding is not None:
            value = rounding(_flushed(value) if "ftz" in modifiers else value)
        if to == "bf16":
            value = bf16_bits(value.astype(np.float32))
        elif DTYPES[to].kind in "iu" and value.dtype.kind == "f":
            value = _to_integer(value, DTYPES[to])
        value = value.astype(DTYPES[to])
        # A register that is wider than the type gets the sign too.
        out[lanes] = value.astype(out.dtype) if value.dtype.kind != "i" else value.astype(f"i{out.itemsize}").view(out.dtype)

    return run


def _prmt(machine: Machine, instruction: Instruction) -> Step:
    out = machine.target(instruction.operands[0], np.uint32)
    a, b, selector = (machine.source(operand, np.uint32) for operand in instruction.operands[1:])

    def run(lanes):
        both = a[lanes].astype(np.uint64) | b[lanes].astype(np.uint64) << np.uint64(32)
        chosen = selector[lanes]
        result = np.zeros(len(lanes), np.uint32)
        for n in range(4):
            code = chosen >> np.uint32(4 * n)
            byte = (both >> ((code & 7).astype(np.uint64) * np.uint64(8)) & np.uint64(0xFF)).astype(np.uint32)
            byte = np.where(code & 8, np.where(byte & 0x80, 0xFF, 0), byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * n)
        out[lanes] = result

    return run


def _bfe(machine: Machine, instruction: Instruction) -> Step:
    dtype = DTYPES[instruction.parts[1]]
    out = machine.target(instruction.operands[0], dtype)
    value = machine.source(instruction.operands[1], dtype)
    start, length = (machine.source(operand, np.uint32) for operand in instruction.operands[2:])

    def run(lanes):
        bits = 8 * dtype.itemsize
        above = (bits - start[lanes] - length[lanes]).astype(dtype)
        out[lanes] = value[lanes] << above >> (above + start[lanes].astype(dtype))

    return run


def _ternary(machine: Machine, instruction: Instruction) -> Step | None:
    """selp, fma and mad."""
    root, kind = instruction.parts[0], instruction.parts[-1]
    dtype = DTYPES[kind]
    if root == "selp":
        out = machine.target(instruction.operands[0], dtype)
        a, b = (machine.source(operand, dtype) for operand in instruction.operands[1:3])
        predicate = machine.source(instruction.operands[3], bool)

        def select(lanes):
            out[lanes] = np.where(predicate[lanes], a[lanes], b[lanes])

        return select
    a, b = (machine.source(operand, dtype) for operand in instruction.operands[1:3])
    wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if "wide" in instruction.parts or root == "fma" else dtype
    result = dtype if root == "fma" else wide
    out, c = machine.target(instruction.operands[0], result), machine.source(instruction.operands[3], result)
    flush = _flushed if "ftz" in instruction.parts else lambda value: value

    def run(lanes):
        # A float32 product is exact in float64; the sum is rounded to it first, which matters in one of 2^29 cases.
        total = flush(a[lanes]).astype(wide) * flush(b[lanes]).astype(wide) + flush(c[lanes]).astype(wide)
        out[lanes] = flush(total.astype(result))

    return run


def _binary(machine: Machine, instruction: Instruction) -> Step:
    root, kind = instruction.parts[0], instruction.parts[-1]
    dtype = DTYPES[kind]
    a = machine.source(instruction.operands[1], dtype)
    b = machine.source(instruction.operands[2], np.dtype(np.uint32) if root in ("shl", "shr") else dtype)
    if "wide" in instruction.parts:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        out = machine.target(instruction.operands[0], wide)

        def widen(lanes):
            out[lanes] = a[lanes].astype(wide) * b[lanes].astype(wide)

        return widen
    out = machine.target(instruction.operands[0], dtype)
    if "hi" in instruction.parts:
        if dtype.itemsize == 8:
            raise NotImplementedError(str(instruction))
        wide = np.dtype(f"{dtype.kind}8")

        def high(lanes):
            out[lanes] = (a[lanes].astype(wide) * b[lanes].astype(wide) >> wide.type(8 * dtype.itemsize)).astype(dtype)

        return high
    function = (_FLOAT if dtype.kind == "f" else _INTEGER)[root]
    if "NaN" in instruction.parts:
        function = _nan_first(function)
    flush = _flushed if "ftz" in instruction.parts else lambda value: value

    def run(lanes):
        out[lanes] = flush(function(flush(a[lanes]), flush(b[lanes])))

    return run


def _unary(machine: Machine, instruction: Instruction) -> Step:
    dtype = DTYPES[instruction.parts[-1]]
    out, a = machine.target(instruction.operands[0], dtype), machine.source(instruction.operands[1], dtype)
    function = _UNARY[instruction.parts[0]]
    # The approximations round subnormal numbers to 0 in either form where it says ftz.
    flush = _flushed if "ftz" in instruction.parts else lambda value: value

    def run(lanes):
        out[lanes] = flush(function(flush(a[lanes])).astype(dtype))

    return run


_SPECIAL = {"setp": _setp, "mov": _mov, "cvt": _cvt, "prmt": _prmt, "bfe": _bfe, "selp": _ternary, "fma": _ternary, "mad": _ternary}


def arithmetic_step(machine: Machine, instruction: Instruction) -> Step:
    """The step of an instruction that concerns no other lane and no memory."""
    root = instruction.parts[0]
    if root in _SPECIAL:
        return _SPECIAL[root](machine, instruction)
    if root in _UNARY:
        return _unary(machine, instruction)
    if root in _INTEGER or root in _FLOAT:
        return _binary(machine, instruction)
    raise NotImplementedError(f"{instruction.opcode}: this emulator does not know it")
