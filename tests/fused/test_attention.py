"""The attention kernels against attention written the slow and obvious way."""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels import window_attention
from sjd2_kernels.fused import INTERPRETED
from sjd2_kernels.fused import attention as module
from support.attention import attention_case, obvious_attention, paged

#: bfloat16 products are not those of bfloat16 in Triton's interpreter.
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@pytest.fixture
def splits(monkeypatch) -> None:
    """Small calls split their columns as large ones do on a GPU."""
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(module, "LEAST_COLUMNS", 16)


def check(case, dtype, scale=0.4):
    got = window_attention(*case, scale=scale, backend="triton").cpu()
    wanted = obvious_attention(*(None if tensor is None else tensor.cpu() for tensor in case), scale)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert torch.allclose(got.double(), wanted, rtol=0, atol={torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype])


@pytest.mark.parametrize("timesteps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("rows", "heads", "groups", "inputs", "columns", "width"),
    [(2, 4, 4, 5, 40, 16), (3, 4, 1, 9, 100, 20), (1, 2, 2, 70, 150, 8), (2, 6, 2, 3, 3, 33)],
)  # a head a group; heads that share; several tiles of inputs; a cache without a prefix, an odd width
def test_inputs_see_the_valid_prefix_and_each_other(rows, heads, groups, inputs, columns, width, dtype, timesteps, device, launches):
    case = attention_case(rows, heads, groups, inputs, columns, width, timesteps=timesteps, dtype=dtype, device=device)
    check(case, dtype)
    assert launches[0][0] == "window_attention_kernel"


@pytest.mark.parametrize("timesteps", [0, 2])
def test_columns_are_split_over_programs(splits, timesteps, device, launches):
    case = attention_case(3, 4, 2, 5, 90, 16, timesteps=timesteps, device=device)
    case[3][0] = 0  # a row whose splits are all but one empty
    check(case[:1] + tuple(torch.nan_to_num(t, nan=1.0, posinf=1.0) for t in case[1:3]) + case[3:], torch.float32)
    assert [name for name, *_ in launches] == ["window_attention_kernel", "merge_splits_kernel"]
    assert launches[0][1] == (5 * 3 * 2,), "of each group of each row"


@pytest.mark.parametrize("page_size", [1, 16, 24])
@pytest.mark.parametrize("timesteps", [0, 2])
def test_pages_are_read_where_they_lie(page_size, timesteps, device):
    query, keys, values, lengths, levels = attention_case(3, 4, 2, 5, 90, 16, timesteps=timesteps, device=device)
    *pools, table = paged(keys, values, page_size)
    behind = torch.arange(table.shape[1], device=device) * page_size >= lengths[:, None] + 5
    table = table.masked_fill(behind, -1)  # a row has no pages behind its inputs
    got = window_attention(query, *pools, lengths, levels, block_table=table, backend="triton")
    assert torch.equal(got, window_attention(query, keys, values, lengths, levels, backend="triton"))


def test_one_input_is_ar(device):
    check(attention_case(4, 2, 2, 1, 50, 16, device=device), torch.float32)


def test_the_same_call_gives_the_same_bits(splits, device):
    case = attention_case(2, 4, 2, 6, 80, 16, device=device)
    assert torch.equal(window_attention(*case, backend="triton"), window_attention(*case, backend="triton"))


def test_a_row_does_not_depend_on_its_neighbours(device):
    case = attention_case(3, 2, 2, 4, 60, 16, device=device)
    whole = window_attention(*case, backend="triton")
    alone = window_attention(*(None if tensor is None else tensor[1:2] for tensor in case), backend="triton")
    assert torch.equal(whole[1:2], alone)


def test_a_row_without_room_is_finite(device):
    """Its tokens are worthless, and the host will say so; but nothing is read beyond the cache."""
    query, keys, values, lengths, _ = attention_case(2, 2, 2, 4, 20, 16, device=device)
    lengths[1] = 18
    out = window_attention(query, torch.nan_to_num(keys, posinf=1.0), torch.nan_to_num(values, nan=1.0), lengths, backend="triton")
    assert out.isfinite().all()


def test_empty_calls_launch_nothing(device, launches):
    query, keys, values, lengths, _ = attention_case(2, 2, 2, 4, 20, 16, device=device)
    assert window_attention(query[:0], keys[:0], values[:0], lengths[:0], backend="triton").shape == (0, 4, 2, 16)
    assert not launches
