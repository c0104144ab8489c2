"""The random-number contract."""

from __future__ import annotations

import random

import pytest
import torch
from scipy import stats

from sjd2_kernels import Purpose
from sjd2_kernels.random import gumbel_noise, philox, uniform_from_bits, uniforms

# Known answers of the generator's authors (Random123, kat_vectors): counter, key, output.
KNOWN = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def _signed(key: tuple[int, int]) -> int:
    value = key[0] | key[1] << 32
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox(tuple(torch.tensor(c) for c in counter), torch.tensor(_signed(key)))
    assert tuple(words.tolist()) == expected


def _philox_in_integers(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_broadcasts_and_agrees_with_integer_arithmetic():
    generator = random.Random(0)
    seeds = [tuple(generator.getrandbits(32) for _ in range(2)) for _ in range(3)]
    blocks = [generator.getrandbits(32) for _ in range(5)]
    words = philox(
        (torch.tensor(blocks), torch.tensor(7), torch.tensor([[1], [2], [3]]), torch.tensor(2)),
        torch.tensor([_signed(seed) for seed in seeds])[:, None],
    )
    for i, seed in enumerate(seeds):
        for j, block in enumerate(blocks):
            assert words[i, j].tolist() == _philox_in_integers((block, 7, i + 1, 2), seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_never_0_or_1(dtype):
    uniform = uniform_from_bits(torch.tensor([0, 1, 2**32 - 1]), dtype)
    assert uniform.dtype == dtype
    assert (uniform > 0).all()
    assert (uniform < 1).all()
    assert uniform[0] < 2.0**-32


def test_noise_depends_on_seed_and_position_and_not_on_company():
    seeds, positions = torch.tensor([5, 9]), torch.tensor([[3, 4, 5], [8, 9, 10]])
    noise = gumbel_noise(seeds, positions, 11)
    alone = gumbel_noise(seeds[1:], positions[1:, 2:], 11)
    assert torch.equal(noise[1, 2], alone[0, 0])
    assert torch.equal(noise[..., :6], gumbel_noise(seeds, positions, 6)), "a smaller vocabulary must see the same words"
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert not torch.equal(gumbel_noise(torch.tensor([5]), positions[:1], 11), gumbel_noise(torch.tensor([6]), positions[:1], 11))


def test_purposes_iterations_and_words_are_different_streams():
    seeds, positions = torch.arange(2000), torch.zeros(2000, 1, dtype=torch.int64)
    streams = [
        uniforms(seeds, purpose, torch.full((2000,), iteration), positions)[:, 0, word]
        for purpose in (Purpose.VERIFY, Purpose.DRAFT)
        for iteration in (0, 1)
        for word in (0, 1)
    ]
    correlation = torch.corrcoef(torch.stack(streams))
    assert (correlation - torch.eye(len(streams))).abs().max() < 0.12  # 5 standard deviations of 2000 samples


def test_frozen_noise_is_gumbel_distributed():
    noise = gumbel_noise(torch.arange(50), torch.arange(10).expand(50, 10), 97, dtype=torch.float64)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-4
