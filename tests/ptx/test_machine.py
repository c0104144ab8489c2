"""The machine that runs PTX: what instructions do, and that what a GPU would do wrong is an error."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from emulator.kernels import compiled_kernels, step_of
from emulator.machine import FaultError, Machine
from emulator.memory import Global
from emulator.program import read_program
from triton.backends.compiler import GPUTarget

from sjd2_kernels import Rule
from sjd2_kernels.fused import launch
from support.fused import compare_verify, random_window

THREADS = 64
_HEAD = """
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0
)
.reqntid 64
{
"""


def run(body: str, out: torch.Tensor, *, programs: int = 1, seed: int = 0) -> None:
    """Run PTX on programs of 64 threads; %rd0 is ``out``'s address and %r0 the number of the thread within its program."""
    text = f"{_HEAD}\tld.param.b64 \t%rd0, [small_param_0];\n\tmov.u32 \t%r0, %tid.x;\n{body}\n\tret;\n}}\n"
    grid = (programs, 1, 1)
    ids = np.array([[number, 0, 0] for number in range(programs)])
    machine = Machine(
        read_program(text), {"small_param_0": struct.pack("<Q", out.data_ptr())}, grid, ids, Global([out]), shared_bytes=1024, seed=seed
    )
    with np.errstate(all="ignore"):
        machine.run(step_of)


def results(body: str, register: str = "%r9", *, programs: int = 1) -> list[int]:
    """What a 32-bit register holds at the end, of every thread."""
    out = torch.zeros(programs * THREADS, dtype=torch.int32)
    place = "mov.u32 %r90, %ctaid.x;\nmad.lo.s32 %r90, %r90, 64, %r0;\nmad.wide.s32 %rd90, %r90, 4, %rd0;\n"
    run(f"{body}\n{place}st.global.b32 [%rd90], {register};", out, programs=programs)
    return out.tolist()


def of_bits(value: float) -> str:
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.s32 %r9, 2147483647, 1;", -(2**31)),
        ("mul.hi.u32 %r9, -1, -1;", -2),
        ("mul.hi.s32 %r9, -1, 5;", -1),
        ("div.s32 %r9, -7, 2;", -3),
        ("shl.b32 %r9, 1, 31;", -(2**31)),
        ("shl.b32 %r9, 1, 32;", 0),
        ("shr.s32 %r9, -8, 40;", -1),
        ("shr.u32 %r9, -8, 40;", 0),
        ("bfe.u32 %r9, 0x1234, 4, 8;", 0x23),
        ("bfe.s32 %r9, 0x00F0, 4, 4;", -1),
        ("prmt.b32 %r9, 0x44332211, 0x88776655, 0x7410U;", 0x88552211 - 2**32),
        ("popc.b32 %r9, 255;", 8),
        ("selp.b32 %r9, 3, 4, 0;", 4),
        ("mad.lo.s32 %r9, 3, 4, 5;", 17),
        ("min.s32 %r9, -1, 1;", -1),
        ("min.u32 %r9, -1, 1;", 1),
        (f"cvt.rzi.s32.f32 %r9, {of_bits(-2.7)};", -2),
        (f"cvt.rzi.s32.f32 %r9, {of_bits(3e9)};", 2**31 - 1),
        (f"cvt.rzi.s32.f32 %r9, {of_bits(float('nan'))};", 0),
        (f"add.rn.f32 %r9, {of_bits(1)}, {of_bits(2**-25)};", 0x3F800000),
        (f"min.NaN.f32 %r8, {of_bits(1)}, {of_bits(float('nan'))};\nsetp.eq.f32 %p1, %r8, %r8;\nselp.b32 %r9, 1, 0, %p1;", 0),
        (f"min.f32 %r9, {of_bits(1)}, {of_bits(float('nan'))};", 0x3F800000),
        (f"setp.ne.f32 %p1, {of_bits(1)}, {of_bits(float('nan'))};\nselp.b32 %r9, 1, 0, %p1;", 0),
        (f"setp.neu.f32 %p1, {of_bits(1)}, {of_bits(float('nan'))};\nselp.b32 %r9, 1, 0, %p1;", 1),
        (f"cvt.rn.bf16.f32 %rs1, {of_bits(1 + 2**-8)};\ncvt.u32.u16 %r9, %rs1;", 0x3F80),  # half way: to even
        (f"cvt.rn.bf16.f32 %rs1, {of_bits(1 + 3 * 2**-8)};\ncvt.u32.u16 %r9, %rs1;", 0x3F82),
        ("mov.b32 {%rs1, %rs2}, 0x00020001;\ncvt.u32.u16 %r9, %rs2;", 2),
        (f"ex2.approx.f32 %r9, {of_bits(-149)};", 1),
        (f"ex2.approx.ftz.f32 %r9, {of_bits(-149)};", 0),
    ],
)
def test_what_an_instruction_gives(instruction, expected):
    assert results(instruction) == [expected] * THREADS


def test_an_instruction_that_is_not_known_is_named():
    with pytest.raises(NotImplementedError, match=r"tex\.2d"):
        results("tex.2d %r9, %r0;")


def test_branches_part_and_come_together():
    """Threads of one warp take different ways, some of them a loop, and shuffle together again behind it."""
    body = """
setp.lt.s32 %p1, %r0, 10;
mov.u32 %r9, 0;
@%p1 bra $less;
$again:
add.s32 %r9, %r9, 1;
setp.lt.s32 %p2, %r9, %r0;
@%p2 bra $again;
bra.uni $end;
$less:
mov.u32 %r9, 1000;
$end:
shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
"""
    alone = [1000 if thread < 10 else thread for thread in range(THREADS)]
    assert results(body) == [alone[thread ^ 1] for thread in range(THREADS)]


def test_warps_reduce_and_programs_add():
    assert results("redux.sync.add.s32 %r9, %r0, 0xFFFFFFFF;") == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
    total = torch.zeros(1, dtype=torch.int32)
    run("mov.u32 %r1, 1;\natom.global.gpu.acq_rel.add.u32 %r2, [ %rd0 + 0 ], %r1;", total, programs=5)
    assert total.item() == 5 * THREADS


_SHARED = """
mov.b32 %r1, global_smem;
shl.b32 %r2, %r0, 2;
add.s32 %r3, %r1, %r2;
st.shared.b32 [%r3], %r0;
{barrier}
xor.b32 %r4, %r2, {distance};
add.s32 %r5, %r1, %r4;
ld.shared.b32 %r9, [%r5];
"""


def test_shared_memory_of_another_warp_needs_a_barrier():
    neighbours = [thread ^ 32 for thread in range(THREADS)]
    assert results(_SHARED.format(barrier="bar.sync 0;", distance=128)) == neighbours
    assert results(_SHARED.format(barrier="bar.sync 0;", distance=128), programs=3) == neighbours * 3
    with pytest.raises(FaultError, match="another warp wrote since the last barrier"):
        results(_SHARED.format(barrier="", distance=128))
    assert results(_SHARED.format(barrier="", distance=4)) == [thread ^ 1 for thread in range(THREADS)], "within a warp it needs none"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.lt.s32 %p1, %r0, 32;\n@%p1 bra $end;\nbar.sync 0;\n$end:", "barrier"),
        ("setp.lt.s32 %p1, %r0, 16;\n@%p1 bra $end;\nshfl.sync.bfly.b32 %r9, %r0, 1, 31, -1;\n$end:", "not all threads of a warp"),
        ("mad.wide.s32 %rd1, %r0, 4, %rd0;\nld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];", "no multiple of 16"),
        ("mad.wide.s32 %rd1, %r0, 8, %rd0;\nld.global.b32 %r1, [%rd1];", "outside all tensors"),
        ("st.global.b32 [%rd0], %r0;", "different values at one address"),
        ("mov.b32 %r1, global_smem;\nst.shared.b32 [%r1], %r0;", "different values at one place"),
        ("mov.b32 %r1, global_smem;\nst.shared.b32 [%r1+2000], %r0;", "shared address"),
    ],
    ids=["barrier", "shuffle", "alignment", "outside", "store", "shared store", "shared outside"],
)
def test_what_a_gpu_would_do_wrong_is_a_fault(body, message):
    with pytest.raises(FaultError, match=message):
        run(body, torch.zeros(THREADS, dtype=torch.int32))


def test_a_promise_that_does_not_hold_shows(monkeypatch):
    """The launcher says by what rows' places can be divided; if it said too much, other logits would be read."""

    class Boastful:
        @staticmethod
        def gcd(*numbers: int) -> int:
            return 8

    monkeypatch.setattr(launch, "math", Boastful)
    logits, _, processing, arguments = random_window(1, 2, 9_002, dtype=torch.bfloat16, top_k=50)
    with compiled_kernels(GPUTarget("cuda", 90, 32)), pytest.raises(AssertionError, match=r"threshold|cut"):
        compare_verify((logits.contiguous(), None, processing, arguments), Rule.COUPLED, torch.device("cpu"))
