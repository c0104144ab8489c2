"""The compiled ``denoise`` for CPUs against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2_kernels import compiled, denoise
from support.embeddings import denoising_case

pytestmark = pytest.mark.skipif(compiled.obstacle("cpu") is not None, reason=f"{compiled.obstacle('cpu')}")

#: A unit in the last place, where the next inputs are rounded to the model's dtype; of float32 what logarithms and cosines may differ by.
UNIT = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def compare(tensors, arguments):
    wanted = denoise(*tensors, backend="torch", **arguments)
    got = denoise(*tensors, backend="cpp", **arguments)
    assert got.dtype == wanted.dtype
    assert got.is_contiguous()
    assert torch.allclose(got.float(), wanted.float(), rtol=UNIT[got.dtype], atol=4e-6)
    clean = arguments["next_levels"] == 0
    assert torch.equal(got[clean], wanted[clean]), "clean slots are their token's embedding, bit for bit"
    return got


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize(("batch", "window", "width"), [(3, 7, 50), (1, 1, 1), (2, 5, 2050), (2, 96, 64)])
def test_the_next_inputs_are_those_of_the_definition(dtype, batch, window, width):
    compare(*denoising_case(batch, window, width, dtype))


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 9), st.integers(1, 13), st.sampled_from(list(UNIT)))
def test_whatever_the_shapes_and_types(seed, batch, window, width, dtype):
    compare(*denoising_case(batch, window, width, dtype, seed=seed))


@pytest.mark.parametrize("table", list(UNIT))
def test_a_table_of_another_type_is_rounded_to_the_inputs(table):
    for dtype in UNIT:
        (embeds, weight, mean, std), arguments = denoising_case(2, 9, 20, dtype)
        compare([embeds, weight.to(table), mean, std], arguments)


def test_values_round_as_pytorch_rounds_them():
    """Clean slots of a float32 table: ties, subnormals, the border of infinity, NaN."""
    bits = torch.randint(-(2**31), 2**31, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    ties = torch.arange(0x3F80_0000, 0x3F80_0000 + 2**17, 2**12, dtype=torch.int32)
    edges = torch.tensor([0.0, -0.0, 65519.996, 65520.0, -1e9, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 6.1e-5, 3.4e38, torch.inf, torch.nan])
    weight = torch.cat([bits.view(torch.float32), ties.view(torch.float32), edges])[None]
    width, zeros = weight.shape[1], torch.zeros(1, dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float16):
        embeds, mean = torch.zeros(1, 1, width, dtype=dtype), torch.zeros(width)
        arguments = {"tokens": zeros[None], "committed": zeros, "levels": mean[None, :1], "next_levels": mean[None, :1], "seeds": zeros}
        got = denoise(embeds, weight, mean, mean, **arguments, position=zeros, backend="cpp")
        assert torch.equal(got[0, 0].nan_to_num(nan=-7.0), weight[0].to(dtype).nan_to_num(nan=-7.0))


def test_one_thread_and_several_give_the_same_bits():
    tensors, arguments = denoising_case(4, 64, 512, torch.bfloat16)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(denoise(*tensors, backend="cpp", **arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("change", [{"tokens": 20}, {"tokens": -1}, {"committed": 5}, {"committed": -1}])
def test_what_is_out_of_range_is_an_error(change):
    tensors, arguments = denoising_case(3, 4, 6, torch.float32)
    ((name, value),) = change.items()
    arguments[name][1] = value
    with pytest.raises(ValueError, match=r"tokens, committed: expected ids in \[0, 20\), and at most 4 committed slots, got otherwise in row 1"):
        denoise(*tensors, backend="cpp", **arguments)


def test_float64_is_for_the_definition():
    tensors, arguments = denoising_case(1, 2, 3, torch.float64)
    with pytest.raises(RuntimeError, match="denoise cannot run on 'cpp' here: it computes in float32, and float64 was given"):
        denoise(*tensors, backend="cpp", **arguments)
    assert torch.equal(denoise(*tensors, **arguments), denoise(*tensors, backend="torch", **arguments))
