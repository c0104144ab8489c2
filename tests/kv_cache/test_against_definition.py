"""The native ops against their PyTorch definitions, bit for bit: random shapes, layouts, dtypes, lengths, maps and tables."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sjd2_kernels
from sjd2_kernels.compiled import obstacle
from support import kv_cases as cases

OPS = {
    "kv_append": cases.appends(),
    "kv_rollback": cases.rollbacks(),
    "kv_compact": cases.compactions(),
    "kv_compact_columns": cases.column_compactions(),
    "paged_kv_append": cases.paged_appends(),
    "paged_kv_gather": cases.gathers(),
    "paged_kv_reserve": cases.reservations(),
    "paged_kv_rollback": cases.paged_rollbacks(),
    "paged_kv_compact": cases.table_compactions(),
    "paged_kv_compact_columns": cases.paged_column_compactions(),
}

needs_native = pytest.mark.skipif(obstacle("cpu") is not None, reason=f"{obstacle('cpu')}")


@needs_native
@pytest.mark.parametrize("name", list(OPS))
@given(data=st.data())
def test_native_does_what_the_definition_says(name, data):
    call = data.draw(OPS[name])
    expected, got = call.clone(), call.clone()
    assert getattr(sjd2_kernels, name)(**expected, backend="torch") is None
    assert getattr(sjd2_kernels, name)(**got, backend="native") is None
    for argument in expected:
        assert cases.same(got[argument], expected[argument]), argument


@needs_native
@pytest.mark.parametrize("name", list(OPS))
@given(data=st.data())
def test_memory_beside_the_views_is_left_alone(name, data):
    """Layouts with gaps have bytes that belong to nobody; a wrong stride would write there."""
    call = data.draw(OPS[name])
    expected, got = call.clone(), call.clone()
    getattr(sjd2_kernels, name)(**expected, backend="torch")
    getattr(sjd2_kernels, name)(**got, backend="native")

    def storages(arguments: dict) -> list[torch.Tensor]:
        flat = [tensor for value in arguments.values() for tensor in (value if isinstance(value, list) else [value])]
        return [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()) for tensor in flat if isinstance(tensor, torch.Tensor)]

    for wanted, have in zip(storages(expected), storages(got), strict=True):
        assert torch.equal(have, wanted)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_caches_without_columns_hold_nothing(backend):
    """Lengths of 0 stay, and no row can be longer."""
    caches, lengths = [torch.zeros(2, 3, 0, 4)], torch.zeros(2, dtype=torch.int64)
    sjd2_kernels.kv_rollback(lengths, torch.zeros(2, dtype=torch.int64), caches=caches, window=3, backend=backend)
    sjd2_kernels.kv_compact(caches, lengths, torch.tensor([1, 0]), backend=backend)
    assert lengths.tolist() == [0, 0]
    with pytest.raises(ValueError, match="new_lengths"):
        sjd2_kernels.kv_rollback(lengths, torch.tensor([0, 2]), caches=caches, window=3, backend=backend)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_copies_on_several_threads(threads):
    """Beyond the size from which the native code calls for helpers, by every op that copies."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(threads)
    layers = [torch.randint(2**31, (4, 8, 600, 64), generator=generator, dtype=torch.int32) for _ in range(4)]
    new = [torch.randint(2**31, (4, 8, 96, 64), generator=generator, dtype=torch.int32) for _ in range(2)]
    results = []
    try:
        torch.set_num_threads(threads)
        for backend in ("torch", "native"):
            caches, lengths = [layer.clone() for layer in layers], torch.tensor([500, 0, 504, 77])
            sjd2_kernels.kv_append(*caches[:2], *new, lengths, backend=backend)
            sjd2_kernels.kv_compact_columns(caches, lengths, torch.arange(95, -1, -1).repeat(4, 1), backend=backend)
            sjd2_kernels.kv_rollback(lengths, lengths + 40, window=96, caches=caches, backend=backend)
            sjd2_kernels.kv_compact(caches, lengths, torch.tensor([2, 0, 1]), backend=backend)
            results.append([*caches, lengths])
    finally:
        torch.set_num_threads(before)
    assert cases.same(*results)


@needs_native
def test_a_forked_child_can_still_copy():
    """Threads of the pool do not survive a fork; the child must not wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second, third = (torch.zeros(1, 64, 256, 64) for _ in range(3))
        new, lengths = torch.ones(1, 64, 128, 64), torch.tensor([7])
        sjd2_kernels.kv_append(first, second, new, new, lengths, backend="native")
        child = os.fork()
        if child == 0:  # PyTorch's own threads are gone too: nothing else that uses them may run here
            signal.alarm(30)
            sjd2_kernels.kv_append(third, second, new, new, lengths, backend="native")
            os._exit(0 if third[0, 63, 134, 63].item() == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


@needs_native
def test_more_than_two_to_the_31_bytes_apart():
    """64-bit addressing. The cache is mapped and, but for what is written, never touched."""
    columns = 2**31 // 1024 + 8
    cache = torch.empty(1, 2, columns, 512, dtype=torch.int16)
    new = torch.arange(2 * 2 * 512, dtype=torch.int16).view(1, 2, 2, 512)
    length = torch.tensor([columns - 2])
    sjd2_kernels.kv_append(cache, cache[..., :512], new, new, length, backend="native")
    assert torch.equal(cache[:, :, -2:], new)
    sjd2_kernels.kv_compact_columns([cache], length, torch.tensor([[1, 0]]), backend="native")
    assert torch.equal(cache[:, :, -2:], new[:, :, [1, 0]])
