"""Window attention with the products of warpgroups that Triton compiles it to for Hopper; and that an emulated product is as NVIDIA describes it."""

from __future__ import annotations

import math
import re
import struct

import numpy as np
import pytest
import torch
from emulator import kernels
from emulator.arithmetic import bf16_bits, bf16_value
from emulator.kernels import compiled_kernels, step_of
from emulator.machine import FaultError, Machine
from emulator.memory import POISON, Global
from emulator.pending import Pending
from emulator.program import read_program
from triton.backends.compiler import GPUTarget

from sjd2_kernels import window_attention
from sjd2_kernels.fused import attention
from support.attention import attention_case, obvious_attention, paged

pytestmark = pytest.mark.usefixtures("garbage")

SM_90 = GPUTarget("cuda", 90, 32)
CLOSE = {torch.bfloat16: 3e-2, torch.float16: 3e-3}
BFLOAT16, FLOAT16 = CLOSE


def _full(*case):
    return pytest.param(*case, marks=pytest.mark.full)


@pytest.fixture
def splits(monkeypatch) -> None:
    """Small calls split their columns as large ones do on a GPU."""
    monkeypatch.setattr(attention, "INTERPRETED", False)
    monkeypatch.setattr(attention, "LEAST_COLUMNS", 16)


def check(case, launches, *, table=None, plain=None) -> None:
    """The kernel against attention written the obvious way, on what the pages hold if they are given."""
    got = window_attention(*case, scale=0.4, backend="triton", block_table=table)
    wanted = obvious_attention(*(case if plain is None else plain), 0.4)
    assert torch.allclose(got.double(), wanted, rtol=0, atol=CLOSE[case[0].dtype])
    assert products(launches), "the program has no products of warpgroups"


def products(launches) -> set[str]:
    """Their shapes, and where the left matrix is."""
    executed = launches.of("window_attention_kernel")[0]["executed"]
    found = [instruction for instruction in executed if instruction.opcode.startswith("wgmma.mma_async")]
    return {f"{instruction.parts[4]} {'registers' if instruction.operands[1].startswith('{') else 'memory'}" for instruction in found}


@pytest.mark.parametrize(
    ("dtype", "shape", "timesteps", "shapes"),
    [
        (BFLOAT16, (2, 4, 1, 16, 70, 16), 0, {"m64n64k16 memory", "m64n16k16 registers"}),  # patterns of 32 bytes
        (FLOAT16, (2, 4, 1, 16, 130, 32), 2, {"m64n64k16 memory", "m64n32k16 registers"}),  # of 64
        (BFLOAT16, (3, 4, 1, 9, 100, 64), 2, {"m64n64k16 memory", "m64n64k16 registers"}),  # of 128, rows that are no inputs
        (BFLOAT16, (1, 2, 2, 70, 150, 128), 0, {"m64n64k16 memory", "m64n128k16 registers"}),  # a matrix of two patterns, two warpgroups
        (FLOAT16, (1, 2, 1, 40, 100, 256), 2, {"m64n16k16 memory", "m64n128k16 registers"}),  # warpgroups that share the rows
        _full(FLOAT16, (2, 4, 1, 16, 70, 16), 2, {"m64n64k16 memory", "m64n16k16 registers"}),
        _full(BFLOAT16, (1, 4, 1, 16, 100, 20), 0, {"m64n64k16 memory", "m64n32k16 registers"}),
        _full(FLOAT16, (1, 4, 1, 16, 100, 64), 0, {"m64n64k16 memory", "m64n64k16 registers"}),
        _full(BFLOAT16, (70, 4, 1, 16, 300, 64), 0, {"m64n64k16 memory", "m64n64k16 registers"}),  # more programs than run at once
        _full(FLOAT16, (1, 2, 2, 70, 150, 128), 2, {"m64n64k16 memory", "m64n128k16 registers"}),
        _full(BFLOAT16, (1, 1, 1, 130, 300, 40), 2, {"m64n64k16 memory", "m64n64k16 registers"}),
        _full(BFLOAT16, (1, 2, 1, 40, 200, 256), 0, {"m64n16k16 memory", "m64n128k16 registers"}),
    ],
)
def test_window_attention(dtype, shape, timesteps, shapes):
    with compiled_kernels(SM_90) as launches:
        check(attention_case(*shape, timesteps=timesteps, dtype=dtype), launches)
    assert products(launches) == shapes


@pytest.mark.parametrize(
    ("dtype", "width", "page_size", "timesteps"),
    [(BFLOAT16, 64, 24, 2), _full(FLOAT16, 128, 16, 0), _full(BFLOAT16, 32, 1, 0), _full(FLOAT16, 256, 16, 2)],
)
def test_pages(dtype, width, page_size, timesteps):
    query, keys, values, lengths, levels = plain = attention_case(3, 8, 2, 16, 150, width, timesteps=timesteps, dtype=dtype)
    *pools, table = paged(keys, values, page_size)
    table = table.masked_fill(torch.arange(table.shape[1]) * page_size >= lengths[:, None] + 16, -1)
    with compiled_kernels(SM_90) as launches:
        check((query, *pools, lengths, levels), launches, table=table, plain=plain)


@pytest.mark.parametrize(("dtype", "width", "timesteps"), [(BFLOAT16, 64, 2), _full(FLOAT16, 64, 0), _full(BFLOAT16, 128, 2), _full(FLOAT16, 256, 0)])
def test_columns_are_split_over_programs(dtype, width, timesteps, splits):
    """Some programs have several blocks of columns and others none: they are at different places, each with groups of its own."""
    case = attention_case(2, 8, 2, 16, 200, width, timesteps=timesteps, dtype=dtype)
    case[3][0] = 0
    with compiled_kernels(SM_90) as launches:
        check(case, launches)
    assert [row["kernel"] for row in launches.rows] == ["window_attention_kernel", "merge_splits_kernel"]


# What is left out, the first time or every time, and how that shows.
_COPIES = "a product reads shared memory that was written since the last"
_LEFT_OUT = [
    ("wgmma.wait_group.sync.aligned 0;", 1, None),
    ("wgmma.wait_group.sync.aligned 0;", 0, None),
    ("wgmma.commit_group.sync.aligned;", 0, None),
    ("wgmma.fence.sync.aligned;", 1, "no wgmma.fence since"),
    ("wgmma.fence.sync.aligned;", 0, "no wgmma.fence since"),
    ("fence.proxy.async.shared::cta;", 0, f"{_COPIES} fence.proxy.async"),
    ("bar.sync 	0;", 0, "since the last barrier"),
    ("cp.async.wait_group 	[12];", 0, None),
]


@pytest.mark.parametrize(("left_out", "count", "message"), _LEFT_OUT, ids=[f"{text[:16]}-{count or 'all'}" for text, count, _ in _LEFT_OUT])
def test_what_is_left_out_is_noticed(left_out, count, message, monkeypatch):
    query, keys, values, lengths, levels = attention_case(2, 4, 1, 16, 200, 64, timesteps=2, dtype=BFLOAT16)
    case = query, keys.nan_to_num(posinf=1.0), values.nan_to_num(nan=1.0), lengths.fill_(180), levels

    replaced = []

    def read(text: str):
        text, times = re.subn(re.escape(left_out).replace(r"\[12\]", "[12]"), "membar.cta;", text, count=count)
        replaced.append(times)
        return read_program(text)

    with compiled_kernels(SM_90) as launches:
        monkeypatch.setattr(kernels._Compiled, "programs", {})
        check(case, launches)
        monkeypatch.setattr(kernels._Compiled, "programs", {})
        monkeypatch.setattr(kernels, "read_program", read)
        with pytest.raises(AssertionError, match=message):  # that the result is wrong is one, too
            check(case, launches)
    assert replaced[0] > 0


# Products of matrices that are laid out here, by the canonical layouts of NVIDIA's manual.

LEADING, STRIDE, START = 1024, 4096, 1024
#: (mode, whether it is transposed): shape and strides of its place in units of 2 bytes, by row and by depth; bits of the exchange.
_LINES = {0: 8, 3: 16, 2: 32, 1: 64}
LAYOUTS = {(mode, False): ([(8, line), (16, STRIDE // 2)], [(8, 1), (2, 8 if mode else LEADING // 2)]) for mode, line in _LINES.items()}
LAYOUTS |= {(mode, True): ([(line, 1), (16, LEADING // 2)], [(8, line), (2, STRIDE // 2)]) for mode, line in _LINES.items()}
LAYOUTS[0, True] = ([(8, 1), (16, STRIDE // 2)], [(8, 8), (2, LEADING // 2)])


def _place_of(index: int, modes: list[tuple[int, int]]) -> int:
    place = 0
    for size, stride in modes:
        place += index % size * stride
        index //= size
    return place


def laid_out(matrix: np.ndarray, mode: int, transposed: bool, start: int) -> np.ndarray:
    """Shared memory with ``matrix`` ``[rows, 16]`` in bfloat16 bits."""
    memory = np.full(64 * 1024, 0x7FFF, np.uint16)
    rows, depth = LAYOUTS[mode, transposed]
    exchanged = int(math.log2(_LINES[mode] // 8))
    for (row, column), value in np.ndenumerate(matrix):
        place = 2 * (_place_of(row, rows) + _place_of(column, depth))
        place ^= (place >> 7) % 2**exchanged << 4
        memory[(start + place) // 2] = value
    return memory


def descriptor(start: int, mode: int, base: int = 0) -> int:
    return start >> 4 | LEADING >> 4 << 16 | STRIDE >> 4 << 32 | base << 49 | mode << 62


_WAIT = "wgmma.wait_group.sync.aligned 0;"
_PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1,%r2,%r3,%r4}, FIRST, SECOND, FLAGS;"


def multiplied(
    a, b, *, flags: str, before: str = "", after: str = _WAIT, threads: int = 128, start: int = START, fence: bool = True, first=None, **options
) -> np.ndarray:
    """The sums ``[64, 8]`` of one product, of matrices (bits, mode, whether transposed, base); sums are 1 before it."""
    text = """
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0
)
.reqntid THREADS
{
	ld.param.b64 %rd0, [small_param_0];
	mov.u32 %r0, %tid.x;
	mad.wide.s32 %rd1, %r0, 16, %rd0;
	SUMS
	BEFORE
	FENCE
	wgmma.fence.sync.aligned;
	PRODUCT
	wgmma.commit_group.sync.aligned;
	AFTER
	st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};
	ret;
}
"""
    descriptors = [f"{descriptor(start + 32 * 1024 * n, mode, base)}" for n, (_, mode, _, base) in enumerate((a, b))]
    fields = {"THREADS": threads, "SUMS": "\n".join(f"mov.b32 %r{n}, 0f3F800000;" for n in range(1, 5)), "BEFORE": before, "AFTER": after}
    fields["PRODUCT"] = _PRODUCT
    fields["FENCE"] = "fence.proxy.async.shared::cta;" if fence else ""
    for field, value in (fields | {"FIRST": first or descriptors[0], "SECOND": descriptors[1], "FLAGS": flags}).items():
        text = text.replace(field, str(value))
    out = torch.zeros(64, 8)
    arguments = {"small_param_0": struct.pack("<Q", out.data_ptr())}
    machine = Machine(read_program(text), arguments, (1, 1, 1), np.zeros((1, 3), np.int64), Global([out]), shared_bytes=128 * 1024, seed=0, **options)
    for n, (matrix, mode, transposed, _) in enumerate((a, b)):
        memory = laid_out(matrix, mode, transposed, start).view(np.uint8)
        machine.shared.bytes[32 * 1024 * n :][: 32 * 1024] = memory[: 32 * 1024]
    machine.run(step_of)
    # Thread t holds columns 2 (t % 4) and the next of row 16 (t / 32) + t % 32 / 4, then of the one 8 below.
    held = out.numpy().reshape(4, 8, 4, 2, 2)
    return held.transpose(0, 3, 1, 2, 4).reshape(64, 8)


def _matrices() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return tuple(bf16_bits(random.standard_normal((rows, 16)).astype(np.float32)) for rows in (64, 8))


@pytest.mark.parametrize("mode", sorted(_LINES))
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_matrices_in_shared_memory(mode, transposed):
    left, right = _matrices()
    flags = f"1, 1, 1, {', '.join(str(int(flag)) for flag in transposed)}"
    got = multiplied((left, mode, transposed[0], 0), (right, mode, transposed[1], 0), flags=flags)
    assert np.allclose(got, 1 + bf16_value(left) @ bf16_value(right).T, rtol=0, atol=1e-5)


def test_a_pattern_that_begins_between_boundaries():
    left, right = _matrices()
    start = START + 3 * 128
    got = multiplied((left, 1, False, 3), (right, 1, False, 3), flags="1, 1, 1, 0, 0", start=start)
    assert np.allclose(got, 1 + bf16_value(left) @ bf16_value(right).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("flags", "before", "sign"), [("0, 1, 1", 0, 1), ("1, -1, 1", 1, -1), ("1, 1, -1", 1, -1), ("0, -1, -1", 0, 1)])
def test_signs_and_what_was_there_before(flags, before, sign):
    left, right = _matrices()
    got = multiplied((left, 1, False, 0), (right, 1, False, 0), flags=f"{flags}, 0, 0")
    assert np.allclose(got, before + sign * (bf16_value(left) @ bf16_value(right).T), rtol=0, atol=1e-5)


# One thread writes where the left matrix begins.
_FIRST = "setp.eq.s32 %p9, %r0, 0;\nmov.b32 %r9, global_smem;\n@%p9"
_STORE = f"{_FIRST} st.shared.b32 [%r9+1024], %r0;"
_COPY = f"{_FIRST} cp.async.ca.shared.global [ %r9 + 1024 ], [ %rd0 + 0 ], 0x4;\ncp.async.commit_group;\ncp.async.wait_group 0;"
# The left matrix in registers.
_HELD, _SET = "{%r11,%r12,%r13,%r14}", "\n".join(f"mov.b32 %r{n}, 0;" for n in range(11, 15))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 64}, "not all threads of a warpgroup"),
        ({"before": "setp.lt.s32 %p1, %r0, 32;\n@%p1 bra $end;", "after": "$end:"}, "not all threads of a warpgroup"),
        ({"before": _STORE}, "written since the last barrier"),
        ({"after": f"{_STORE}\n{_WAIT}"}, "written since the last barrier"),
        ({"after": f"bar.sync 0;\n{_STORE}\nbar.sync 0;\n{_WAIT}"}, "written since the last barrier"),
        ({"after": f"{_WAIT}\n{_STORE}"}, "another warp read or wrote since"),
        ({"after": f"mov.b32 %r1, 0;\n{_WAIT}"}, "were written before the product was waited for"),
        ({"first": _HELD, "before": _SET, "flags": "1, 1, 1, 0", "after": f"mov.b32 %r11, 1;\n{_WAIT}"}, "left matrix of .* was changed"),
        ({"after": f"{_PRODUCT.replace('%r1,%r2', '%r2,%r1')}\n{_WAIT}"}, "another product has not finished"),
        ({"before": "setp.lt.s32 %p1, %r0, 64;", "flags": "%p1, 1, 1, 0, 0"}, "different predicates"),
        ({"start": 1 << 18}, "run over"),
    ],
    ids=[
        "half", "a warp away", "no barrier", "overwritten", "overwritten later", "overwritten after", "sums", "registers", "overlap", "predicates",
        "address",
    ],
)  # fmt: skip
def test_what_a_gpu_would_do_wrong_is_a_fault(options, message, monkeypatch):
    if "start" in options:  # what is laid out does not matter
        monkeypatch.setitem(globals(), "laid_out", lambda *_: np.zeros(64 * 1024, np.uint16))
    left, right = _matrices()
    with pytest.raises(FaultError, match=message):
        multiplied((left, 1, False, 0), (right, 1, False, 0), **({"flags": "1, 1, 1, 0, 0"} | options))


@pytest.mark.parametrize("write", [_STORE, _COPY], ids=["store", "copy"])
def test_what_was_written_needs_a_fence(write):
    left, right = _matrices()
    options = {"flags": "1, 1, 1, 0, 0", "before": f"{write}\nbar.sync 0;"}
    multiplied((left, 1, False, 0), (right, 1, False, 0), **options)
    with pytest.raises(FaultError, match="written since the last fence"):
        multiplied((left, 1, False, 0), (right, 1, False, 0), **options, fence=False)
    if write == _COPY:  # Triton used to leave this one out
        multiplied((left, 1, False, 0), (right, 1, False, 0), **options, fence=False, fence_copies=False)


def test_sums_are_not_there_before_they_are_waited_for():
    left, right = _matrices()
    for after in ("", "wgmma.wait_group.sync.aligned 1;"):
        assert np.isnan(multiplied((left, 1, False, 0), (right, 1, False, 0), flags="1, 1, 1, 0, 0", after=after)).all()


def test_groups_are_those_of_every_thread():
    finished = []
    pending = Pending(4)
    one, two, every = np.array([0, 1]), np.array([2, 3]), np.arange(4)
    pending.begin(every, lambda places: finished.append(("first", places.tolist())))
    pending.commit(one)
    pending.begin(every, lambda places: finished.append(("second", places.tolist())))
    pending.commit(every)
    pending.wait(every, 1)
    assert finished == [("first", [0, 1])], "the others have one group, with both in it"
    pending.wait(two, 0)
    assert finished[1:] == [("first", [2, 3]), ("second", [2, 3])]
    pending.wait(every, 0)
    pending.wait(every, 0)
    assert finished[3:] == [("second", [0, 1])]


def test_copies_of_programs_at_different_places():
    """The second program leaves out the first commit: it has one group where the other has two, and waits for nothing."""
    text = """
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0
)
.reqntid 32
{
	ld.param.b64 %rd0, [small_param_0];
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
	shl.b32 %r2, %r0, 2;
	mov.b32 %r3, global_smem;
	add.s32 %r3, %r3, %r2;
	mad.wide.s32 %rd1, %r0, 4, %rd0;
	cp.async.ca.shared.global [ %r3 + 0 ], [ %rd1 + 0 ], 0x4;
	setp.eq.s32 %p1, %r1, 1;
	@%p1 bra $second;
	cp.async.commit_group;
$second:
	cp.async.ca.shared.global [ %r3 + 128 ], [ %rd1 + 0 ], 0x4;
	cp.async.commit_group;
	cp.async.wait_group 1;
	ld.shared.b32 %r4, [%r3];
	mad.lo.s32 %r5, %r1, 32, %r0;
	mad.wide.s32 %rd2, %r5, 4, %rd0;
	st.global.b32 [%rd2+128], %r4;
	ret;
}
"""
    memory = torch.arange(96, dtype=torch.int32)
    arguments = {"small_param_0": struct.pack("<Q", memory.data_ptr())}
    ids = np.array([[0, 0, 0], [1, 0, 0]])
    Machine(read_program(text), arguments, (2, 1, 1), ids, Global([memory]), shared_bytes=256, seed=0).run(step_of)
    assert memory[32:].tolist() == [*range(32), *[int(POISON)] * 32]
