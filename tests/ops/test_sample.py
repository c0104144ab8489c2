"""One draw from raw logits."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sjd2_kernels import LogitsProcessing, Purpose, sample
from sjd2_kernels.sampling.inverse_cdf import inverse_cdf

ROWS = 40_000


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.GUMBEL])
def test_draws_have_the_target_law(purpose):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -torch.inf], dtype=torch.float64)
    processing = LogitsProcessing.create(ROWS, temperature=0.9, top_k=3)
    zeros = torch.zeros(ROWS, dtype=torch.int64)
    tokens = sample(logits.expand(ROWS, 1, 5), None, processing, seeds=torch.arange(ROWS), iteration=zeros, position=zeros[:, None], purpose=purpose)
    expected = (logits[[0, 2, 3]] / 0.9).softmax(0) * ROWS
    counts = torch.bincount(tokens.flatten(), minlength=5)
    assert counts[[1, 4]].sum() == 0
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), expected.numpy()).pvalue > 1e-4


def test_frozen_noise_ignores_the_iteration_and_other_draws_do_not():
    logits = torch.zeros(1, 64, 1000)
    arguments = {"seeds": torch.tensor([1]), "position": torch.arange(64)[None]}
    processing = LogitsProcessing.create(1)
    first, second = (
        {
            purpose: sample(logits, None, processing, iteration=torch.tensor([i]), purpose=purpose, **arguments)
            for purpose in (Purpose.DRAFT, Purpose.GUMBEL)
        }
        for i in (0, 1)
    )
    assert torch.equal(first[Purpose.GUMBEL], second[Purpose.GUMBEL])
    assert not torch.equal(first[Purpose.DRAFT], second[Purpose.DRAFT])


@pytest.mark.parametrize("vocab", [7, 1024, 1025, 5000])
def test_inverse_cdf_inverts_the_running_sum_across_blocks(vocab):
    generator = torch.Generator().manual_seed(vocab)
    masses = torch.rand(vocab, generator=generator, dtype=torch.float64)
    masses[torch.rand(vocab, generator=generator) < 0.5] = 0
    masses[vocab // 2] = 1.0
    uniform = torch.rand(2000, generator=generator, dtype=torch.float64)
    running = masses.cumsum(0)
    expected = torch.searchsorted(running, uniform * running[-1], right=True)
    assert torch.equal(inverse_cdf(masses.expand(2000, -1), uniform), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_never_returns_an_id_without_mass(dtype):
    masses = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=dtype)
    uniform = torch.tensor([2.0**-33, 0.25 - 1e-6, 0.25, 0.5, 1 - 2.0**-24], dtype=dtype)
    assert inverse_cdf(masses.expand(5, 5), uniform).tolist() == [1, 1, 3, 3, 3]
    # In float32 the total of many small masses can round below u · total.
    many = torch.full((65_536,), 1e-5, dtype=dtype)
    many[-7:] = 0
    assert int(inverse_cdf(many[None], torch.tensor([1 - 2.0**-24], dtype=dtype))) <= 65_528


def test_one_row_of_logits_serves_many_slots():
    logits = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(0))
    arguments = {"seeds": torch.tensor([1, 2]), "iteration": torch.tensor([3, 4]), "position": torch.arange(7).expand(2, 7)}
    for purpose in (Purpose.DRAFT, Purpose.GUMBEL):
        one = sample(logits, None, LogitsProcessing.create(2), purpose=purpose, **arguments)
        assert torch.equal(one, sample(logits.expand(2, 7, 50), None, LogitsProcessing.create(2), purpose=purpose, **arguments))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_checked_path_names_the_row_and_the_unchecked_one_stays_in_range(bad):
    logits = torch.zeros(2, 1, 3)
    logits[1] = bad
    zeros = torch.zeros(2, dtype=torch.int64)
    arguments = {"seeds": zeros, "iteration": zeros, "position": zeros[:, None]}
    assert 0 <= int(sample(logits, None, LogitsProcessing.create(2), **arguments)[1]) < 3
    with pytest.raises(FloatingPointError, match=r"logits: expected finite values .* row 1"):
        sample(logits, None, LogitsProcessing.create(2), check=True, **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, r"seeds: expected shape \(1,\), got \(2,\)"),
        ({"position": torch.zeros(1, 1)}, TypeError, "position: expected dtype torch.int64, got torch.float32"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    zeros = torch.zeros(1, dtype=torch.int64)
    arguments = {"seeds": zeros, "iteration": zeros, "position": zeros[:, None]} | change
    with pytest.raises(error, match=message):
        sample(torch.zeros(1, 1, 3), None, LogitsProcessing.create(1), **arguments)
