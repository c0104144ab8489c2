"""The definition of ``window_attention``, and its arguments."""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels import window_attention
from sjd2_kernels.attention.op import attention_obstacle
from support.attention import attention_case, obvious_attention, paged


def finite(keys, values):
    """The definition multiplies by 0 what the kernels do not read."""
    return torch.nan_to_num(keys, posinf=7.0), torch.nan_to_num(values, nan=9.0)


@pytest.mark.parametrize("timesteps", [0, 3])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_every_input_sees_what_it_should(heads, groups, timesteps):
    query, keys, values, lengths, levels = attention_case(3, heads, groups, 7, 20, 5, timesteps=timesteps, dtype=torch.float64)
    got = window_attention(query, *finite(keys, values), lengths, levels, scale=0.3)
    assert got.is_contiguous()
    assert torch.allclose(got, obvious_attention(query, keys, values, lengths, levels, 0.3), atol=1e-12)


def test_pages_are_columns():
    query, keys, values, lengths, levels = attention_case(3, 4, 2, 5, 20, 8, timesteps=2, dtype=torch.float64)
    keys, values = finite(keys, values)
    *pools, table = paged(keys, values, 6)
    pools = [torch.nan_to_num(pool, nan=3.0) for pool in pools]
    got = window_attention(query, *pools, lengths, levels, block_table=table)
    assert torch.allclose(got, window_attention(query, keys, values, lengths, levels), atol=1e-12)


def test_the_scale_is_that_of_the_width_unless_given():
    query, keys, values, lengths, _ = attention_case(1, 2, 2, 3, 8, 16, dtype=torch.float64)
    keys, values = finite(keys, values)
    assert torch.equal(window_attention(query, keys, values, lengths), window_attention(query, keys, values, lengths, scale=0.25))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": torch.zeros(2, 4, 5)}, ValueError, r"query: expected shape \(R, H, T, D\), got \(2, 4, 5\)"),
        ({"keys": torch.zeros(2, 2, 9, 7)}, ValueError, r"keys: expected shape \(2, G, S, 8\), got \(2, 2, 9, 7\)"),
        ({"keys": torch.zeros(2, 3, 9, 8)}, ValueError, "keys: expected a number of heads that divides query's 4, got 3"),
        ({"keys": torch.zeros(2, 2, 3, 8), "values": torch.zeros(2, 2, 3, 8)}, ValueError, "keys: expected columns for the 5 inputs at least, got 3"),
        ({"values": torch.zeros(2, 2, 8, 8)}, ValueError, r"values: expected shape \(2, 2, 9, 8\), got \(2, 2, 8, 8\)"),
        ({"values": torch.zeros(2, 2, 9, 8).half()}, TypeError, "values: expected query's dtype torch.float32, got torch.float16"),
        ({"lengths": torch.zeros(3).long()}, ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
        ({"lengths": torch.zeros(2).int()}, TypeError, "lengths: expected dtype torch.int64, got torch.int32"),
        ({"levels": torch.zeros(2, 6).long()}, ValueError, r"levels: expected shape \(2, W\) with W <= 5, got \(2, 6\)"),
        ({"levels": torch.zeros(2, 3)}, TypeError, "levels: expected dtype torch.int64, got torch.float32"),
        ({"block_table": torch.zeros(3, 1).long()}, ValueError, r"block_table: expected shape \(2, M\), got \(3, 1\)"),
        ({"block_table": torch.zeros(2, 1).int()}, TypeError, "block_table: expected dtype torch.int64, got torch.int32"),
        ({"block_table": torch.zeros(2, 0).long()}, ValueError, "keys: expected columns for the 5 inputs at least, got 0"),
        ({"backend": "cpp"}, ValueError, "backend: window_attention has torch, triton, got 'cpp'"),
    ],
)
def test_a_wrong_argument_is_named(changed, error, message):
    arguments = {
        "query": torch.zeros(2, 4, 5, 8),
        "keys": torch.zeros(2, 2, 9, 8),
        "values": torch.zeros(2, 2, 9, 8),
        "lengths": torch.zeros(2).long(),
    }
    with pytest.raises(error, match=message):
        window_attention(**(arguments | changed))


def test_heads_that_are_too_wide_are_not_for_the_kernels():
    wide = torch.zeros(1, 1, 1, 300)
    with pytest.raises(RuntimeError, match="window_attention cannot run on 'triton' here: heads are at most 256 wide there, and these are 300"):
        window_attention(wide, wide, wide, torch.zeros(1).long(), backend="triton")


def test_rows_that_are_too_long_are_not_for_the_kernels():
    query = torch.empty(1, 1, 1, 1, device="meta")
    long = torch.empty_strided((1, 1, 2**20, 1), (2**31, 2**31, 2**11, 1), device="meta")
    assert attention_obstacle(query, long) == "the columns of a row span fewer than 2^31 elements there, and these 2147483648"


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nor_are_rows_whose_heads_inputs_or_elements_lie_far_apart(place, axis):
    """Their offsets are counted in 32 bits: of queries and values as of keys, and along every axis."""
    tensors = [torch.empty(1, 3, 3, 3, device="meta")] * 3
    assert "elements there" not in str(attention_obstacle(*tensors))
    strides = [16, 16, 4, 1]
    strides[axis] = 2**30
    tensors[place] = torch.empty_strided((1, 3, 3, 3), strides, device="meta")
    assert f"the {'columns' if place else 'inputs'} of a row span fewer than 2^31 elements there" in attention_obstacle(*tensors)
