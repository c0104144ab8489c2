"""Compile every Triton kernel in the configurations that the launchers choose, for GPUs that are not there, and look at what they need.

    python .ci/check_triton.py [--targets sm_80 sm_90 …] [--kernels NAME …] [--instructions] [--jobs N]

The launchers themselves choose: they run with kernels that only write down how they were called, on tensors that nobody fills. Every tile
shape is compiled with every feature on, and the largest shapes also with each feature off, every rule and the other dtypes. Fails if a
kernel does not compile, spills a register to memory, or wants more shared memory than the target gives one program. Nothing here says how
fast a kernel is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sjd2_kernels import LastForward, LogitsProcessing, Purpose, Rule
from sjd2_kernels.fused import INTERPRETED, attention, denoise, draw, launch, statistics
from sjd2_kernels.fused.logits import launch_options
from sjd2_kernels.processing import RowStatistics

#: Target, and the bytes of shared memory that one program can have there.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166_912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232_448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232_448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65_536),
}
VOCABULARIES = (97, 1_000, 8_192, 16_384, 65_536, 184_622)
WIDTHS = (100, 4_096)
_KERNELS = {name: kernel for module in (statistics, draw, denoise, attention) for name, kernel in vars(module).items() if name.endswith("_kernel")}
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32",
    torch.bool: "i1", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


class _Recorder:
    """Stands in for a kernel and keeps how it was called, as Triton would specialise it."""

    def __init__(self, kernel, calls: dict):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        def call(*positional, **named):
            options = tuple((name, named.pop(name)) for name in launch_options(1) if name in named)
            arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | named
            types, constants, aligned = {}, {}, []
            for index, parameter in enumerate(self.kernel.params):
                value = arguments[parameter.name]
                if parameter.is_constexpr or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
                    types[parameter.name], constants[(index,)] = "constexpr", value
                elif isinstance(value, torch.Tensor):
                    types[parameter.name] = f"*{_TYPES[value.dtype]}"
                    aligned.append((index,))
                elif isinstance(value, float):
                    types[parameter.name] = "fp32"
                else:
                    types[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
                    if value % 16 == 0:
                        aligned.append((index,))
            key = (self.kernel.__name__, tuple(types.items()), tuple(constants.items()), tuple(aligned), options)
            self.calls.setdefault(key, None)

        return call


def _logits(batch: int, window: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory that is never written is never handed out."""
    return torch.empty(batch, window, vocab, dtype=dtype)


def _call_verify(vocab: int, rule: Rule, *, batch=8, window=96, dtype=torch.bfloat16, uncond=True, allowed=True, last=True, top_k=True, top_p=True):
    logits = _logits(batch, window, vocab, dtype)
    other = logits if uncond else None
    processing = LogitsProcessing.create(
        batch, top_k=50 if top_k else 0, top_p=0.9 if top_p else 1.0, allowed=torch.ones(vocab, dtype=torch.bool) if allowed else None
    )
    slots, rows = torch.zeros(batch, window, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)
    statistics = RowStatistics(slots.float(), slots, slots.float())
    launch.verify_fused(
        logits, other, processing, rule=rule, drafts=slots, q_row=slots, last=LastForward(logits, other, statistics) if last else None,
        clean=slots == 0, forced=slots, remaining=rows, seeds=rows, iteration=rows, position=rows, log_keep_ratio=-1.0, end_id=-1,
    )  # fmt: skip


def _call_sample(vocab: int, purpose: Purpose, given: int) -> None:
    batch, window = 8, 96
    slots, rows = torch.zeros(batch, window, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)
    logits = _logits(batch, given, vocab, torch.bfloat16)
    processing = LogitsProcessing.create(batch, top_k=50, top_p=0.9)
    launch.sample_fused(logits, logits, processing, seeds=rows, iteration=rows, position=slots, purpose=purpose)


def _call_denoise(width: int, dtype: torch.dtype) -> None:
    slots, rows, levels = torch.zeros(8, 96, dtype=torch.int64), torch.zeros(8, dtype=torch.int64), torch.zeros(8, 96)
    mean = torch.zeros(width)
    named = {"tokens": slots, "committed": rows, "levels": levels, "next_levels": levels, "seeds": rows, "position": rows}
    denoise.denoise_fused(torch.zeros(8, 96, width, dtype=dtype), torch.zeros(4, width, dtype=dtype), mean, mean, **named)


def _call_attention(
    inputs: int, heads: int, groups: int, width: int, dtype: torch.dtype, *, timesteps: int, rows: int = 2, paged: bool = False
) -> None:
    query = torch.empty(rows, inputs, heads, width, dtype=dtype).transpose(1, 2)
    keys = torch.empty(rows, 2_432, groups, width, dtype=dtype).transpose(1, 2)
    table = torch.zeros(rows, 152, dtype=torch.int64) if paged else None
    if paged:
        keys = torch.empty(300, 16, groups, width, dtype=dtype).transpose(1, 2)
    levels = torch.zeros(rows, inputs - timesteps, dtype=torch.int64) if timesteps else None
    attention.window_attention_fused(query, keys, keys, torch.zeros(rows, dtype=torch.int64), levels, table, 0.1)


def _attention_configurations() -> None:
    for inputs, width in itertools.product((1, 20, 64, 97), (64, 128, 256)):  # every tile, with all that it can have
        _call_attention(inputs, 32, 32, width, torch.bfloat16, timesteps=int(inputs > 1))
    for inputs in (20, 64, 97):
        _call_attention(inputs, 32, 32, 128, torch.bfloat16, timesteps=0)
    _call_attention(64, 32, 8, 80, torch.bfloat16, timesteps=0)
    for inputs, width in ((1, 128), (64, 128), (97, 256)):
        _call_attention(inputs, 32, 32, width, torch.bfloat16, timesteps=inputs // 97, paged=True)
    _call_attention(65, 8, 8, 128, torch.float32, timesteps=1, paged=True)
    _call_attention(64, 32, 32, 128, torch.float16, timesteps=0, rows=16)
    for width in (64, 128, 256):
        _call_attention(64, 8, 8, width, torch.float32, timesteps=0)
    _call_attention(65, 8, 8, 128, torch.float32, timesteps=1)


def configurations(target: str) -> list[tuple]:
    """Distinct kernel calls that the launchers make on a GPU."""
    calls: dict = {}
    attention._kind = lambda device: {"sm_80": "ampere", "gfx942": "amd"}.get(target, "hopper")
    for module in (launch, denoise, attention):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, _Recorder(_KERNELS[name], calls))
    for vocab in VOCABULARIES:
        _call_verify(vocab, Rule.COUPLED)
    for vocab, rule in itertools.product((1_000, 184_622), Rule):
        _call_verify(vocab, rule)
    for vocab, batch, rule in itertools.product((1, 3), (1, 1_000), Rule):  # short rows, which share programs
        _call_verify(vocab, rule, batch=batch, window=3, dtype=torch.float32, uncond=vocab > 1, allowed=vocab > 1, top_p=False)
    for feature in ("uncond", "allowed", "last", "top_k", "top_p"):
        _call_verify(8_192, Rule.COUPLED, **{feature: False})
        _call_verify(184_622, Rule.COUPLED, **{feature: False})
    _call_verify(8_192, Rule.COUPLED, top_k=False, top_p=False)
    _call_verify(184_622, Rule.COUPLED, top_k=False, top_p=False)
    for dtype in (torch.float16, torch.float32):
        _call_verify(8_192, Rule.COUPLED, dtype=dtype)
    for purpose in (Purpose.DRAFT, Purpose.GUMBEL):
        _call_sample(8_192, purpose, 96)
        _call_sample(184_622, purpose, 1)
    for width in WIDTHS:
        _call_denoise(width, torch.bfloat16)
    _call_denoise(2_048, torch.float32)
    _attention_configurations()
    return list(calls)


def _cuda_resources(compiled) -> tuple[int, int]:
    """Registers per thread and bytes of stack, where spilled registers go, of the machine code."""
    import triton.backends.nvidia as backend

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        command = [str(Path(backend.__file__).parent / "bin" / "cuobjdump"), "--dump-resource-usage", str(binary)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    return int(found[1]), int(found[2]) + int(found[3])


def _cuda_instructions(compiled) -> str:
    """How many instructions the machine code has, and each of its innermost loops. Paths that are seldom taken count, too."""
    import triton.backends.nvidia as backend

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        command = [str(Path(backend.__file__).parent / "bin" / "nvdisasm"), "-c", str(binary)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, labels, loops = 0, {}, []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            back = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction[1])
            if back and back[1] in labels:
                loops.append((labels[back[1]], count))
            count += 1
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return f"{count} instructions, loops of {', '.join(str(b - a + 1) for a, b in inner if b > a) or 'none'}"


def _hip_resources(compiled) -> tuple[int, int]:
    """Vector registers per thread and bytes of scratch memory. Scalar registers spill into lanes of vector registers, not into memory."""
    text = compiled.asm["amdgcn"]
    spilled = sum(int(number) for number in re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", text))
    return int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1]), spilled


def check(target_name: str, call: tuple, instructions: bool = False) -> dict:
    """Compile one configuration for one target."""
    name, types, constants, aligned, options = call
    target, limit = TARGETS[target_name]
    kernel = _KERNELS[name]
    source = ASTSource(kernel, dict(types), dict(constants), {place: [["tt.divisibility", 16]] for place in aligned})
    shown = {kernel.arg_names[place[0]]: value for place, value in constants if not kernel.arg_names[place[0]].endswith(("_b", "_w", "_v", "_d"))}
    options = dict(options)
    row = {"kernel": name, "target": target_name, "warps": options["num_warps"], "constants": shown}
    if target.backend == "hip":  # has no such limit
        del options["maxnreg"]
    try:
        compiled = triton.compile(source, target=target, options=options)
    except Exception as error:  # whatever the compiler says belongs into the table
        return row | {"error": f"{type(error).__name__}: {error}"}
    registers, spilled = _cuda_resources(compiled) if target.backend == "cuda" else _hip_resources(compiled)
    row |= {"registers": registers, "spilled": spilled, "shared": compiled.metadata.shared, "limit": limit}
    return row | ({"code": _cuda_instructions(compiled)} if instructions and target.backend == "cuda" else {})


def main() -> int:
    """Check everything; the exit code is 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kernels", nargs="+", choices=list(_KERNELS), default=list(_KERNELS), metavar="NAME")
    parser.add_argument("--instructions", action="store_true", help="count those of the machine code for NVIDIA's GPUs, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    calls = [(target, call) for target in options.targets for call in configurations(target) if call[0] in options.kernels]
    failures = []
    print(f"Triton {triton.__version__}: {len(calls)} kernels for {', '.join(options.targets)}")
    print(f"{'kernel':24}{'target':8}{'warps':>6}{'regs':>6}{'spill B':>9}{'shared B':>10}  constants")
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(check, *call, options.instructions) for call in calls]
        for future in as_completed(futures):
            row = future.result()
            constants = " ".join(f"{key}={int(value)}" for key, value in row["constants"].items())
            if "error" in row:
                failures.append(row)
                print(f"{row['kernel']:24}{row['target']:8}{row['warps']:6}  {row['error']}  {constants}")
                continue
            bad = row["spilled"] > 0 or row["shared"] > row["limit"]
            failures += [row] if bad else []
            numbers = f"{row['registers']:6}{row['spilled']:9}{row['shared']:10}"
            print(f"{row['kernel']:24}{row['target']:8}{row['warps']:6}{numbers}  {constants}{'  FAILS' if bad else ''}", flush=True)
            if "code" in row:
                print(f"{'':24}{row['code']}", flush=True)
    print(f"{len(futures) - len(failures)} of {len(futures)} compile without spills and within shared memory")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
