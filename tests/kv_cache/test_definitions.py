"""The definitions themselves, against loops over rows and columns; and pages against dense buffers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2_kernels import (
    kv_append,
    kv_compact,
    kv_compact_columns,
    kv_rollback,
    paged_kv_append,
    paged_kv_compact,
    paged_kv_gather,
    paged_kv_reserve,
    paged_kv_rollback,
    paged_kv_tables,
)
from sjd2_kernels.compiled import obstacle
from support import kv_cases as cases

BACKENDS = ["torch", *(["native"] if obstacle("cpu") is None else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=cases.appends())
def test_append(backend, call):
    expected, got = call.clone(), call.clone()
    for row, length in enumerate(expected["lengths"].tolist()):
        if length >= 0:
            for cache, new in (("key_cache", "keys"), ("value_cache", "values")):
                for column in range(expected[new].shape[2]):
                    expected[cache][row, :, length + column] = expected[new][row, :, column]
    kv_append(**got, backend=backend)
    assert cases.same(list(got.values()), list(expected.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=cases.rollbacks())
def test_rollback(backend, call):
    expected, got = call.clone(), call.clone()
    lengths, window = expected["lengths"], expected["window"]
    for row, new in enumerate(expected["new_lengths"].tolist()):
        if new >= 0 and lengths[row] >= 0:
            for cache in expected["caches"]:
                cache[row, :, new : int(lengths[row]) + window] = torch.zeros((), dtype=cache.dtype)
            lengths[row] = new
    kv_rollback(**got, backend=backend)
    assert cases.same(list(got.values()), list(expected.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=cases.compactions())
def test_compact_rows(backend, call):
    expected, got = call.clone(), call.clone()
    before = call.clone()
    for slot in range(len(before["lengths"])):
        source = int(before["rows"][slot]) if slot < len(before["rows"]) else None
        if source is None:
            expected["lengths"][slot] = 0
        elif source >= 0:
            length = int(before["lengths"][source])
            expected["lengths"][slot] = length
            for cache, old in zip(expected["caches"], before["caches"], strict=True):
                cache[slot, :, : max(length, 0)] = old[source, :, : max(length, 0)]
    kv_compact(**got, backend=backend)
    assert cases.same(list(got.values()), list(expected.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=cases.column_compactions())
def test_compact_columns(backend, call):
    expected, got, before = call.clone(), call.clone(), call.clone()
    for row, length in enumerate(before["lengths"].tolist()):
        for slot, column in enumerate(before["columns"][row].tolist()):
            if length >= 0 and column >= 0:
                for cache, old in zip(expected["caches"], before["caches"], strict=True):
                    cache[row, :, length + slot] = old[row, :, length + column]
    kv_compact_columns(**got, backend=backend)
    assert cases.same(list(got.values()), list(expected.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_pages_hold_what_a_dense_cache_holds(backend, data):
    """A decoder's life: windows appended, rolled back to what was accepted, rows dropped; after every step both hold the same."""
    rows, page_size, max_pages, window = 4, data.draw(st.integers(1, 5)), 6, data.draw(st.integers(1, 5))
    capacity = page_size * max_pages
    dense = [torch.zeros(rows, 2, capacity, width) for width in (3, 2)]
    pools = [torch.full((rows * max_pages, 2, page_size, width), torch.nan) for width in (3, 2)]
    table, free_list = paged_kv_tables(rows, max_pages, rows * max_pages)
    dense_lengths, lengths = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    fresh = 0.0
    for _ in range(data.draw(st.integers(1, 6))):
        if int(lengths.max()) + window > capacity:
            break
        new = []
        for pool in pools:
            count = rows * 2 * window * pool.shape[3]
            new.append(torch.arange(fresh, fresh + count).view(rows, 2, window, -1))
            fresh += count
        kv_append(*dense, *new, dense_lengths, backend=backend)
        free_before, table_before = free_list.clone(), table.clone()
        paged_kv_reserve(table, free_list, lengths, window, page_size=page_size, backend=backend)
        paged_kv_append(*pools, *new, table, lengths, backend=backend)
        if data.draw(st.booleans()):
            paged_kv_rollback(table, free_list, lengths, lengths.clone(), page_size=page_size, window=window, backend=backend)
            assert torch.equal(table, table_before)
            assert torch.equal(free_list[: 1 + free_list[0]], free_before[: 1 + free_before[0]]), "as if nothing had been taken"
            continue
        kept = torch.tensor(data.draw(st.lists(st.integers(0, window), min_size=rows, max_size=rows)))
        kv_rollback(dense_lengths, dense_lengths + kept, window=window, backend=backend)
        paged_kv_rollback(table, free_list, lengths, lengths + kept, page_size=page_size, window=window, backend=backend)
        if data.draw(st.booleans()):
            chosen = torch.tensor(data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))])
            kv_compact(dense, dense_lengths, chosen, backend=backend)
            paged_kv_compact(table, free_list, lengths, chosen, backend=backend)
        assert torch.equal(lengths, dense_lengths)
        held = (table >= 0).sum(1)
        assert torch.equal(held, (lengths + page_size - 1) // page_size), "whole pages went back"
        owners = table[table >= 0].tolist() + free_list[1 : 1 + free_list[0]].tolist()
        assert sorted(owners) == list(range(rows * max_pages)), "every page is in one place"
        gathered = [torch.zeros_like(cache) for cache in dense]
        paged_kv_gather(*gathered, *pools, table, lengths, backend=backend)
        valid = (torch.arange(capacity) < lengths[:, None])[:, None, :, None]
        for have, wanted in zip(gathered, dense, strict=True):
            assert torch.equal(have, torch.where(valid, wanted, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rollback_copies_nothing(backend):
    """At any length: it is not even shown the caches. And a scrub zeroes what is dropped, no more."""
    lengths = torch.tensor([10**12, 3])
    kv_rollback(lengths, torch.tensor([10**12 - 5, 8]), window=5, backend=backend)
    assert lengths.tolist() == [10**12 - 5, 8]
    cache = torch.ones(1, 1, 8, 1)
    kv_rollback(torch.tensor([3]), torch.tensor([2]), window=3, caches=[cache], backend=backend)
    assert cache.flatten().tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
