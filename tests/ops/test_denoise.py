"""The definition of ``denoise``: the step in the normalised space, the shift, noise and clean copies."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sjd2_kernels import denoise
from sjd2_kernels.random import normal_noise
from support.embeddings import denoising_case


def test_the_step_is_the_published_one_in_the_normalised_space():
    """e' = (σ'/σ)·e + α·(α'/α − σ'/σ)·ê0 with α = 1 − t, σ = t, on normalised embeddings; noise enters at t = 1."""
    (embeds, weight, mean, std), arguments = denoising_case(4, 12, 30, torch.float64)
    mean, std = mean.double(), std.double()
    got = denoise(embeds, weight, mean, std, **arguments)
    noise = normal_noise(arguments["seeds"], arguments["position"][:, None] + torch.arange(12), 30, dtype=torch.float64)
    for b in range(4):
        for j in range(12):
            source = j + int(arguments["committed"][b])
            token = weight[arguments["tokens"][b, j]]
            after = float(arguments["next_levels"][b, j])
            if source >= 12:
                before, state = 1.0, noise[b, j]
            else:
                before, state = float(arguments["levels"][b, source]), (embeds[b, source] - mean) / std
            if after == 0 or before == 0:
                assert torch.equal(got[b, j], token)
                continue
            ratio, alpha, alpha_after = after / before, 1 - before, 1 - after
            drift = alpha_after - alpha * ratio  # α·(α'/α − σ'/σ) without dividing by α = 0 at t = 1
            expected = std * (ratio * state + drift * (token - mean) / std) + mean
            assert torch.allclose(got[b, j], expected, rtol=1e-12, atol=1e-12)


def test_noise_is_standard_normal_and_belongs_to_seed_position_and_dimension():
    seeds, position = torch.arange(300), torch.arange(5).expand(300, 5)
    noise = normal_noise(seeds, position, 41, dtype=torch.float64)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    flat = noise.flatten(0, 1)
    correlation = (flat.T @ flat) / len(flat)
    assert (correlation - torch.eye(41)).abs().max() < 6 / len(flat) ** 0.5
    assert torch.equal(normal_noise(seeds[7:9], position[7:9, 2:4], 13, dtype=torch.float64), noise[7:9, 2:4, :13])


def test_a_level_that_was_clean_stays_clean():
    (embeds, weight, mean, std), arguments = denoising_case(1, 3, 8, torch.float32)
    arguments |= {"committed": torch.tensor([0]), "levels": torch.zeros(1, 3), "next_levels": torch.full((1, 3), 0.5)}
    assert torch.equal(denoise(embeds, weight, mean, std, **arguments), weight[arguments["tokens"]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"levels": torch.zeros(2, 3)}, ValueError, r"levels: expected shape \(2, 4\), got \(2, 3\)"),
        ({"levels": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "levels: expected a floating dtype, got torch.int64"),
        ({"tokens": torch.zeros(2, 4)}, TypeError, "tokens: expected dtype torch.int64, got torch.float32"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    tensors, arguments = denoising_case(2, 4, 6, torch.float32)
    with pytest.raises(error, match=message):
        denoise(*tensors, **(arguments | change))


def test_a_table_of_another_width_is_refused():
    (embeds, weight, mean, std), arguments = denoising_case(2, 4, 6, torch.float32)
    with pytest.raises(ValueError, match=r"weight: expected shape \(V, 6\), got \(20, 5\)"):
        denoise(embeds, weight[:, :5], mean, std, **arguments)
