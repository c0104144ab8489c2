"""From raw logits to the target distribution, against a slow and obvious implementation and against Transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from sjd2_kernels import LogitsProcessing
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from support.tables import target


def probabilities(logits, uncond, processing):
    z = scaled_logits(logits, uncond, processing)
    return log_probabilities(z, row_statistics(z, processing)).exp()


@st.composite
def cases(draw):
    vocab = draw(st.integers(1, 40))
    # Few distinct values: ties at every border.
    values = st.integers(-3, 3) if draw(st.booleans()) else st.floats(-8, 8, width=32)
    logits = draw(st.lists(st.lists(values, min_size=vocab, max_size=vocab), min_size=2, max_size=2))
    allowed = draw(st.lists(st.booleans(), min_size=vocab, max_size=vocab).filter(any))
    rows = [
        {
            "guidance_scale": draw(st.sampled_from([0.0, 1.0, 1.5, 4.0])),
            "temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            "top_k": draw(st.integers(0, vocab + 2)),
            "top_p": draw(st.sampled_from([1e-6, 0.3, 0.75, 0.999, 1.0])),
        }
        for _ in range(2)
    ]
    return torch.tensor(logits, dtype=torch.float64), allowed if draw(st.booleans()) else None, rows


@given(cases())
def test_agrees_with_the_slow_definition(case):
    logits, allowed, rows = case
    conditional, unconditional = logits[:, None], logits.flip(0)[:, None]
    processing = LogitsProcessing.create(
        2, allowed=None if allowed is None else torch.tensor(allowed), **{name: [row[name] for row in rows] for name in rows[0]}
    )
    got = probabilities(conditional, unconditional, processing)
    for b, row in enumerate(rows):
        wanted = target(logits[b].numpy(), logits[1 - b].numpy(), allowed=allowed, **row)
        # A sum that meets top_p to the last bit may fall on either side; such a row may differ by one id.
        if row["top_p"] < 1 and not np.allclose(got[b, 0], wanted, atol=1e-9):
            assert abs((got[b, 0] > 0).sum() - (wanted > 0).sum()) == 1
        else:
            np.testing.assert_allclose(got[b, 0], wanted, atol=1e-9)


def test_agrees_with_transformers_logits_processors():
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = logits
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.8)):
        expected = warper(None, expected)
    processing = LogitsProcessing.create(6, temperature=0.7, top_k=50, top_p=0.8)
    # Transformers' temperature is a Python float, ours a float32 tensor.
    torch.testing.assert_close(probabilities(logits[:, None], None, processing)[:, 0], expected.softmax(-1), atol=1e-7, rtol=1e-6)


def test_ties_keep_the_lowest_ids_and_exactly_k_survive():
    p = probabilities(torch.zeros(1, 1, 7), None, LogitsProcessing.create(1, top_k=3))
    assert p[0, 0].tolist() == pytest.approx([1 / 3] * 3 + [0] * 4)


def test_greedy_is_the_lowest_id_of_the_highest_logit():
    p = probabilities(torch.tensor([[[1.0, 5.0, 5.0]]]), None, LogitsProcessing.create(1, temperature=0.0))
    assert p[0, 0].tolist() == [0, 1, 0]


def test_an_id_masked_in_either_branch_stays_masked():
    inf = float("inf")
    p = probabilities(torch.tensor([[[0.0, -inf, 1.0]]]), torch.tensor([[[-inf, 0.0, 0.5]]]), LogitsProcessing.create(1, guidance_scale=3.0))
    assert p[0, 0].tolist() == [0, 0, 1]


def test_a_nan_is_not_hidden_by_a_masked_partner():
    z = scaled_logits(torch.tensor([[[torch.nan, 0.0]]]), torch.tensor([[[-torch.inf, 0.0]]]), LogitsProcessing.create(1, guidance_scale=2.0))
    assert z[0, 0, 0].isnan()


def test_guidance_without_an_unconditional_branch_is_an_error():
    with pytest.raises(ValueError, match=r"logits_uncond: expected shape .* because guidance_scale is not 1, got None"):
        scaled_logits(torch.zeros(1, 1, 3), None, LogitsProcessing.create(1, guidance_scale=2.0))


def test_guidance_scale_1_ignores_the_unconditional_branch():
    logits = torch.randn(1, 2, 5)
    p = probabilities(logits, torch.full_like(logits, torch.nan), LogitsProcessing.create(1, guidance_scale=1.0))
    assert torch.equal(p, probabilities(logits, None, LogitsProcessing.create(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_float32_and_float64_stays(dtype):
    z = scaled_logits(torch.zeros(1, 1, 3, dtype=dtype), None, LogitsProcessing.create(1))
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("temperature", -0.1, "temperature: expected a finite number >= 0, got -0.1"),
        ("temperature", float("nan"), "temperature: expected a finite number >= 0, got nan"),
        ("top_k", -1, "top_k: expected a whole number >= 0, got -1"),
        ("top_k", 2.5, "top_k: expected a whole number >= 0, got 2.5"),
        ("top_p", 0.0, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ("top_p", 1.5, r"top_p: expected a number in \(0, 1\], got 1.5"),
        ("guidance_scale", float("inf"), "guidance_scale: expected a number between -1e6 and 1e6, got inf"),
        ("temperature", "1", "temperature: expected a finite number >= 0, got '1'"),
        ("guidance_scale", [1.0, "2"], "guidance_scale: expected a number between -1e6 and 1e6, got '2'"),
        ("top_p", None, r"top_p: expected a number in \(0, 1\], got None"),
        ("top_k", [1, 2, 3], r"top_k: expected one value or 2 \(one per row\), got 3"),
        ("allowed", torch.zeros(4, dtype=torch.bool), "allowed: expected bool .* at least one id"),
    ],
)
def test_bad_settings_name_the_argument(argument, value, message):
    with pytest.raises(ValueError, match=message):
        LogitsProcessing.create(2, **{argument: value})


def test_shapes_that_do_not_fit_name_the_argument():
    with pytest.raises(ValueError, match=r"logits_uncond: expected shape \(2, 96, 10\), got \(2, 95, 10\)"):
        scaled_logits(torch.zeros(2, 96, 10), torch.zeros(2, 95, 10), LogitsProcessing.create(2))
