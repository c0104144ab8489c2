"""``support.interpreted`` can fail: kernels with one hazard each, which the interpreter by itself lets pass."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sjd2_kernels.fused import INTERPRETED
from support.interpreted import interpreted

if not INTERPRETED:
    pytest.skip("programs are watched in Triton's interpreter", allow_module_level=True)

N = 16


@triton.jit
def last_adds_kernel(
    parts_ptr, counter_ptr, out_ptr, BARRIER: tl.constexpr, COUNTER: tl.constexpr, CACHE: tl.constexpr, SEM: tl.constexpr, N: tl.constexpr
):
    """Each program leaves a part; the last to arrive adds them up."""
    program, lane = tl.program_id(0), tl.arange(0, N)
    tl.store(parts_ptr + program * N + lane, lane * 1.0)
    if BARRIER:
        tl.debug_barrier()
    arrived = tl.num_programs(0) - 1
    if COUNTER:
        arrived = tl.atomic_add(counter_ptr, 1, sem=SEM)
    if arrived == tl.num_programs(0) - 1:
        total = tl.zeros([N], tl.float32)
        for other in range(tl.num_programs(0)):
            total += tl.load(parts_ptr + other * N + lane, cache_modifier=CACHE)
        tl.store(out_ptr + lane, total)


def last_adds(order, *, barrier=True, counter=True, cache=".cg", sem="acq_rel"):
    parts, out = torch.zeros(3, N), torch.empty(N)
    with interpreted(order):
        last_adds_kernel[(3,)](parts, torch.zeros(1, dtype=torch.int32), out, barrier, counter, cache, sem, N)
    return out


@pytest.mark.parametrize("order", ["ascending", "descending", 3])
def test_a_counter_makes_other_programs_writes_readable(order):
    assert torch.equal(last_adds(order), 3 * torch.arange(float(N)))


@pytest.mark.parametrize("order", ["ascending", "descending", 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counter": False}, "no counter vouches for it"),
        ({"sem": "relaxed"}, "no counter vouches for it"),
        ({"sem": "release"}, "no counter vouches for it"),
        ({"barrier": False}, "no counter vouches for it"),
        ({"cache": ""}, "from its own cache"),
        ({"cache": ".ca"}, "from its own cache"),
    ],
)
def test_every_part_of_the_protocol_counts(change, message, order):
    with pytest.raises(AssertionError, match=message):
        last_adds(order, **change)


@triton.jit
def hazard_kernel(in_ptr, out_ptr, counter_ptr, HAZARD: tl.constexpr, N: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, N)
    half = lane < N // 2
    value = tl.load(in_ptr + lane, mask=half, other=0.0)
    if HAZARD == "no other":
        value = tl.load(in_ptr + lane, mask=half)
    if HAZARD == "outside":
        value = tl.load(in_ptr + lane + N // 2 + 1, mask=half, other=0.0)
    if HAZARD == "store outside":
        tl.store(out_ptr + program * N + lane - 1, value)
    if HAZARD == "one place":
        tl.store(out_ptr + lane, value + program)
    if HAZARD == "two values":
        tl.store(out_ptr + program * N + lane // 2, lane * 1.0)
    if HAZARD == "read back":
        tl.store(out_ptr + program * N + lane, value)
        value = tl.load(out_ptr + program * N + N - 1 - lane)
    if HAZARD == "no integer":
        value = tl.where(half, tl.log(value * 0.0 - 1.0), 0.0).to(tl.int32).to(tl.float32)
    if HAZARD == "too large":
        value = (value + 2147483648.0).to(tl.int32).to(tl.float32)
    if HAZARD == "float sum":
        tl.atomic_add(counter_ptr, 1.0)
    if HAZARD == "counter":
        tl.atomic_add(counter_ptr, 1.0)
        value += tl.load(counter_ptr)
    tl.store(out_ptr + program * N + lane, value)


@pytest.mark.parametrize(
    ("hazard", "message"),
    [
        ("outside", "is outside of all arguments, in 1 lanes"),
        ("store outside", "is outside of all arguments, in 1 lanes"),
        ("one place", "overwrites what another program of the launch wrote"),
        ("two values", "has two values for one address"),
        ("read back", "reads what this program wrote, with no barrier between"),
        ("no integer", "casts what has no integer: nan"),
        ("too large", "casts what has no integer: 2147483648"),
        ("float sum", "is an atomic of floats"),
        ("counter", "touches a counter of the launch"),
    ],
)
def test_a_hazard_is_found_and_named(hazard, message):
    with pytest.raises(AssertionError, match=message) as raised, interpreted():
        hazard_kernel[(2,)](torch.zeros(3 * N)[N : 2 * N], torch.zeros(4, N)[1:3], torch.zeros(1), hazard, N)
    assert "hazard_kernel (" in str(raised.value)
    assert "test_interpreted.py:" in str(raised.value)


def test_a_masked_lane_without_other_holds_anything():
    given = torch.ones(N, dtype=torch.bfloat16)
    seen = []
    for garbage in (0, 1):
        out = torch.zeros(2, N)
        with interpreted(garbage=garbage):
            hazard_kernel[(2,)](given, out, torch.zeros(1), "no other", N)
        seen.append(out)
    assert seen[0][:, N // 2 :].isnan().all()
    assert (seen[1] == 1).all()


def test_a_kernel_without_hazards_has_none():
    out = torch.zeros(2, N)
    with interpreted("descending") as watched:
        hazard_kernel[(2,)](torch.ones(N), out, torch.zeros(1), "none", N)
    assert out.sum() == N
    assert watched.launches == [("hazard_kernel", 2)]
