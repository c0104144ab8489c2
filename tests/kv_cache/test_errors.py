"""Every mistake is named, by every back-end in the same words, before anything is written."""

from __future__ import annotations

import copy

import pytest
import torch

import sjd2_kernels
from sjd2_kernels.compiled import obstacle

BACKENDS = ["torch", *(["native"] if obstacle("cpu") is None else [])]


def long(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def zeros(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def arguments(name: str) -> dict:
    """A call that is right: two rows, one head, eight columns; pages of four columns, six of them, three of them free."""
    paged = {"block_table": long([4, 1, -1], [2, -1, -1]), "lengths": long(5, 2)}
    free = {"free_list": long(3, 0, 3, 5, -9, -9, -9)}
    pools = {"key_pages": zeros(6, 1, 4, 2), "value_pages": zeros(6, 1, 4, 3)}
    new = {"keys": torch.ones(2, 1, 2, 2), "values": torch.ones(2, 1, 2, 3)}
    caches = [zeros(2, 1, 8, 2), zeros(2, 1, 8, 3, dtype=torch.int8)]
    both = [zeros(6, 1, 4, 2), zeros(6, 1, 4, 3)]
    return {
        "kv_append": {"key_cache": zeros(2, 1, 8, 2), "value_cache": zeros(2, 1, 8, 3), **new, "lengths": long(5, 2)},
        "kv_rollback": {"lengths": long(5, 2), "new_lengths": long(6, 0), "window": 2, "caches": caches},
        "kv_compact": {"caches": caches, "lengths": long(5, 2), "rows": long(1, 0)},
        "kv_compact_columns": {"caches": caches, "lengths": long(5, 2), "columns": long([1, 0], [3, -1])},
        "paged_kv_reserve": {**paged, **free, "new": 2, "page_size": 4},
        "paged_kv_append": {**pools, **new, **paged},
        "paged_kv_gather": {"keys": zeros(2, 1, 6, 2), "values": zeros(2, 1, 6, 3), **pools, **paged},
        "paged_kv_rollback": {**paged, **free, "new_lengths": long(3, 3), "window": 2, "page_size": 4, "pools": both},
        "paged_kv_compact": {**paged, **free, "rows": long(1)},
        "paged_kv_compact_columns": {"pools": both, **paged, "columns": long([1, 0], [1, -1])},
    }[name]


NAMES = [name for name in sjd2_kernels.__all__ if "kv_" in name and name != "paged_kv_tables"]
PAGED = [name for name in NAMES if name.startswith("paged")]
WITH_FREE_LIST = ["paged_kv_reserve", "paged_kv_rollback", "paged_kv_compact"]

MISTAKES = [
    # Shapes, dtypes, devices: seen without looking at a value.
    ("kv_append", {"key_cache": zeros(2, 1, 8)}, ValueError, r"key_cache: expected 4 dimensions, got shape \(2, 1, 8\)"),
    ("kv_append", {"key_cache": zeros(2, 1, 8, 2, dtype=torch.complex128)}, TypeError, "key_cache: expected a dtype of 1, 2, 4 or 8 bytes"),
    ("kv_append", {"key_cache": zeros(2, 1, 1, 2).expand(2, 1, 8, 2)}, ValueError, "key_cache: expected memory of its own"),
    ("kv_append", {"value_cache": zeros(2, 1, 9, 3)}, ValueError, r"value_cache: expected shape \(2, 1, 8, 3\), got \(2, 1, 9, 3\)"),
    ("kv_append", {"keys": zeros(2, 1, 2, 5)}, ValueError, r"keys: expected shape \(2, 1, 2, 2\), got \(2, 1, 2, 5\)"),
    ("kv_append", {"values": zeros(2, 1, 3, 3)}, ValueError, r"values: expected shape \(2, 1, 2, 3\), got \(2, 1, 3, 3\)"),
    ("kv_append", {"keys": zeros(2, 1, 2, 2).half()}, ValueError, "keys, values: expected dtype torch.float32 as the cache, got torch.float16"),
    ("kv_append", {"keys": zeros(2, 1, 2, 2).to("meta")}, ValueError, "keys, values: expected device cpu as the cache, got meta"),
    ("kv_append", {"lengths": long(1, 2, 3)}, ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
    ("kv_append", {"lengths": zeros(2)}, TypeError, "lengths: expected dtype torch.int64, got torch.float32"),
    ("kv_append", {"lengths": long(1, 2).to("meta")}, ValueError, "lengths: expected device cpu as the cache, got meta"),
    ("kv_append", {"overflow": zeros(2)}, TypeError, "overflow: expected dtype torch.bool, got torch.float32"),
    ("kv_append", {"backend": "triton"}, ValueError, "backend: kv_append has native, torch, got 'triton'"),
    ("kv_rollback", {"window": -1}, ValueError, "window: expected a whole number >= 0, got -1"),
    ("kv_rollback", {"caches": [zeros(2, 1, 8, 2), zeros(2, 1, 7, 2)]}, ValueError, r"caches\[1\]: expected shape \(2, 1, 8, \*\) as the first"),
    ("kv_rollback", {"caches": [zeros(3, 1, 8, 2)]}, ValueError, r"caches\[0\]: expected shape \(2, 1, 8, 2\), got \(3, 1, 8, 2\)"),
    ("kv_compact", {"rows": long(0, 1, 0)}, ValueError, r"rows: expected shape \(n,\) with n <= 2, got \(3,\)"),
    ("kv_compact_columns", {"columns": long([1, 2])}, ValueError, r"columns: expected shape \(2, 2\), got \(1, 2\)"),
    ("paged_kv_reserve", {"page_size": 0}, ValueError, "page_size: expected a whole number >= 1, got 0"),
    ("paged_kv_reserve", {"free_list": long()}, ValueError, r"free_list: expected shape \(1 \+ pages,\), got \(0,\)"),
    ("paged_kv_append", {"block_table": long([0, 1])}, ValueError, r"block_table: expected shape \(2, 2\), got \(1, 2\)"),
    ("paged_kv_append", {"value_pages": zeros(5, 1, 4, 3)}, ValueError, r"key_pages, value_pages\[1\]: expected shape \(6, 1, 4, \*\)"),
    ("paged_kv_rollback", {"pools": [zeros(7, 1, 4, 2)]}, ValueError, r"pools\[0\]: expected shape \(6, 1, 4, 2\), got \(7, 1, 4, 2\)"),
    # Values.
    ("kv_append", {"lengths": long(6, 7)}, ValueError, r"lengths: expected at most 6 \(capacity 8, 2 new columns\), got 7 in row 1"),
    ("kv_append", {"lengths": long(2**63 - 1, 0)}, ValueError, "lengths: expected at most 6"),
    ("kv_rollback", {"new_lengths": long(8, 0)}, ValueError, r"new_lengths: expected at most 5 \+ 2 \(length \+ window\) in row 0, got 8"),
    ("kv_rollback", {"lengths": long(5, 8), "new_lengths": long(0, 9)}, ValueError, r"new_lengths: .* 8 \(the capacity\), got 9 in row 1"),
    ("kv_compact", {"rows": long(0, 2)}, ValueError, "rows: expected rows below 2, got 2 for slot 1"),
    ("kv_compact", {"lengths": long(1, 9)}, ValueError, r"lengths: expected at most 8 \(the capacity\), got 9 in row 1"),
    ("kv_compact_columns", {"columns": long([0, 3], [0, 0])}, ValueError, r"length \+ column below 8, got length 5 and columns \[0, 3\] in row 0"),
    ("kv_compact_columns", {"columns": long([0, 2**63 - 1], [0, 0])}, ValueError, r"length \+ column below 8"),
    ("paged_kv_reserve", {"new": 8}, ValueError, r"lengths: expected at most 4 \(capacity 12, 8 new columns\), got 5 in row 0"),
    ("paged_kv_reserve", {"new": 7, "free_list": long(2, 0, 3, -9, -9, -9, -9)}, ValueError, "free_list: expected at least 3 free pages, got 2"),
    ("paged_kv_append", {"lengths": long(7, 2)}, ValueError, r"block_table: expected pages for columns 7 … 8 of row 0, got \[4, 1, -1\]"),
    ("paged_kv_append", {"lengths": long(11, 2)}, ValueError, "lengths: expected at most 10"),
    ("paged_kv_gather", {"lengths": long(7, 2)}, ValueError, r"lengths: expected at most 6 \(columns of keys\), got 7 in row 0"),
    ("paged_kv_gather", {"lengths": long(5, 5)}, ValueError, "block_table: expected pages for columns 0 … 4 of row 1"),
    ("paged_kv_compact", {"rows": long(1, 1)}, ValueError, r"rows: expected every row once \(pages are not shared\), got \[1, 1\]"),
    ("paged_kv_compact", {"rows": long(-1, 0)}, ValueError, r"rows: expected every row once \(pages are not shared\), got \[0, 0\]"),
    ("paged_kv_compact_columns", {"columns": long([3, 0], [0, 0])}, ValueError, "block_table: expected pages for columns 8 … 8 of row 0"),
    *((name, {"block_table": long([4, 1, -1], [1, -1, -1])}, ValueError, "got page 1 in row 0 and row 1") for name in PAGED),
    *((name, {"block_table": long([4, 4, -1], [2, -1, -1])}, ValueError, r"got page 4 in row 0 \(2 times\)") for name in PAGED),
    *((name, {"block_table": long([4, 6, -1], [2, -1, -1])}, ValueError, "block_table: expected pages below 6, got 6 in row 0") for name in PAGED),
    *((name, {"free_list": long(1, 2, 3, 5, 0, 0, 0)}, ValueError, "got page 2 in row 1 and the free list") for name in WITH_FREE_LIST),
    *((name, {"free_list": long(7, 0, 3, 5, 0, 0, 0)}, ValueError, "free_list: expected a count of 0 … 6, got 7") for name in WITH_FREE_LIST),
    *((name, {"free_list": long(2, 0, 6, 5, 0, 0, 0)}, ValueError, "free_list: expected pages 0 … 5, got") for name in WITH_FREE_LIST),
    *((name, {"free_list": long(2, 0, 0, 5, 0, 0, 0)}, ValueError, "free_list: expected every page once, got") for name in WITH_FREE_LIST),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_calls_that_mistakes_are_made_in_are_right(name, backend):
    getattr(sjd2_kernels, name)(**arguments(name), backend=backend, check=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "change", "error", "message"), MISTAKES, ids=lambda value: value if isinstance(value, str) and "kv_" in value[:9] else ""
)
def test_mistakes(name, change, error, message, backend):
    call = arguments(name) | copy.deepcopy(change)
    before = copy.deepcopy(call)
    with pytest.raises(error, match=message):
        getattr(sjd2_kernels, name)(**({"backend": backend} | call))
    for argument, value in call.items():
        for one, other in zip(
            *([v] if isinstance(v, torch.Tensor) else v if isinstance(v, list) else [] for v in (value, before[argument])), strict=True
        ):
            assert one.is_meta or torch.equal(one, other), f"{argument} was written"
