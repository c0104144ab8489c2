"""Triton kernels, compiled for a GPU as a launch would and run by the machine on tensors in the memory of the CPU."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sjd2_kernels.fused.logits import launch_options

from .access import access_step
from .arithmetic import arithmetic_step
from .machine import Machine, Step
from .memory import Global
from .program import Instruction, Program, read_program
from .warpgroups import warpgroup_step
from .warps import warp_step

__all__ = ["Launches", "compiled_kernels", "step_of"]

_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.bool: "i1", torch.uint8: "u8",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
_PACKED = {"fp32": "<f", "i32": "<i", "i64": "<q"}
#: Threads that run at once.
LANES = 8_192
#: Up to Triton 3.7.0 a fence between a copy to shared memory and a product of a warpgroup is left out (triton-lang/triton#9610 has put it there).
FENCED_COPIES = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3]) > (3, 7, 0)


@dataclass
class Launches:
    """What was launched: a row per launch, with what it executed and moved."""

    seed: int = 0
    rows: list[dict] = field(default_factory=list)

    def of(self, kernel: str) -> list[dict]:
        """The launches of one kernel."""
        return [row for row in self.rows if row["kernel"] == kernel]


def step_of(machine: Machine, instruction: Instruction) -> Step:
    """What an instruction does, for ``Machine.run``."""
    step = warpgroup_step(machine, instruction)
    if step is not None:
        return step
    if instruction.parts[0] in ("fence", "membar"):
        return lambda lanes: None
    return access_step(machine, instruction) or warp_step(machine, instruction) or arithmetic_step(machine, instruction)


class _Compiled:
    """Stands in for a ``triton.jit`` function."""

    programs: ClassVar[dict[tuple, tuple[Program, int]]] = {}

    def __init__(self, kernel, target: GPUTarget, launches: Launches):
        self.kernel, self.target, self.launches = kernel, target, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        def launch(*positional, **named):
            options = {name: named.pop(name) for name in launch_options(1) if name in named}
            self._run((*grid, 1, 1)[:3], dict(zip(self.kernel.arg_names, positional, strict=False)) | named, options)

        return launch

    def _specialised(self, arguments: dict) -> tuple[dict, dict, list]:
        """Types, constants and what is a multiple of 16, as Triton finds them at a launch."""
        types, constants, aligned = {}, {}, []
        for index, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, arguments[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
                types[name], constants[(index,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                types[name], number = f"*{_TYPES[value.dtype]}", value.data_ptr()
            elif isinstance(value, float):
                types[name], number = "fp32", 1
            else:
                types[name], number = "i32" if abs(value) < 2**31 else "i64", value
            if number % 16 == 0:
                aligned.append((index,))
        return types, constants, aligned

    def _run(self, grid: tuple[int, int, int], arguments: dict, options: dict) -> None:
        types, constants, aligned = self._specialised(arguments)
        key = (self.kernel.__name__, self.target, *map(str, (types, constants, aligned, options)))
        if key not in self.programs:
            source = ASTSource(self.kernel, types, constants, {place: [["tt.divisibility", 16]] for place in aligned})
            compiled = triton.compile(source, target=self.target, options=options)
            self.programs[key] = read_program(compiled.asm["ptx"]), compiled.metadata.shared
        program, shared = self.programs[key]
        order = [name for name in self.kernel.arg_names if types[name] != "constexpr"]
        packed = [
            struct.pack("<Q", arguments[name].data_ptr()) if types[name].startswith("*") else struct.pack(_PACKED[types[name]], arguments[name])
            for name in order
        ]
        scratch = [b"\0" * size for size in list(program.parameters.values())[len(packed) :]]  # Triton's own, unused here
        bound = dict(zip(program.parameters, [*packed, *scratch], strict=True))
        memory = Global([value for value in arguments.values() if isinstance(value, torch.Tensor)])
        random = np.random.default_rng(self.launches.seed + len(self.launches.rows))
        ids = random.permutation(np.array(list(itertools.product(*map(range, grid))), np.int64).reshape(-1, 3))
        executed: Counter = Counter()
        at_once = max(1, LANES // program.threads)
        with np.errstate(all="ignore"):
            for number in range(math.ceil(len(ids) / at_once)):
                some = ids[number * at_once : (number + 1) * at_once]
                machine = Machine(program, bound, grid, some, memory, shared, int(random.integers(2**31)), FENCED_COPIES)
                machine.run(step_of)
                executed += machine.executed
        self.launches.rows.append(
            {"kernel": self.kernel.__name__, "grid": grid, "threads": program.threads, "executed": executed}
            | {"wanted": memory.wanted, "moved": memory.moved, "arguments": arguments}
        )


@contextlib.contextmanager
def compiled_kernels(target: GPUTarget, seed: int = 0) -> Iterator[Launches]:
    """Within it, ops with ``backend="triton"`` run what Triton compiles for ``target``, on CPU tensors. Programs run in an order of chance."""
    from sjd2_kernels import fused
    from sjd2_kernels.fused import attention, denoise, draw, launch, statistics

    launches = Launches(seed)
    kernels = {name: kernel for module in (statistics, draw, denoise, attention) for name, kernel in vars(module).items() if name.endswith("_kernel")}
    changed = [(module, name, getattr(module, name)) for module in (launch, denoise, attention) for name in kernels if hasattr(module, name)]
    changed.append((fused, "INTERPRETED", fused.INTERPRETED))
    try:
        for module, name, kernel in changed[:-1]:
            setattr(module, name, _Compiled(kernel, target, launches))
        fused.INTERPRETED = True
        yield launches
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
