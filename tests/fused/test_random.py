"""Kernels draw the words of ``random.py``, bit for bit, and their Gumbel noise to the last bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sjd2_kernels.fused.denoise import cos_sin_of_turns
from sjd2_kernels.fused.logits import gumbel_from_uniform, philox, uniform_from_bits
from sjd2_kernels.random import Purpose, gumbel_noise, normal_noise, uniforms
from sjd2_kernels.random import gumbel_from_uniform as gumbel_definition
from sjd2_kernels.random import philox as philox_definition
from sjd2_kernels.random import uniform_from_bits as uniform_definition


@triton.jit
def words_kernel(seed_ptr, position_ptr, iteration_ptr, words_ptr, uniform_ptr, BLOCKS: tl.constexpr, PURPOSE: tl.constexpr):
    row = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    words = philox(tl.load(seed_ptr + row), block, tl.load(position_ptr + row), tl.load(iteration_ptr + row), PURPOSE)
    for lane in tl.static_range(4):
        tl.store(words_ptr + (row * BLOCKS + block) * 4 + lane, words[lane].to(tl.int64))
        tl.store(uniform_ptr + (row * BLOCKS + block) * 4 + lane, uniform_from_bits(words[lane]))


@triton.jit
def gumbel_kernel(uniform_ptr, noise_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(noise_ptr + index, gumbel_from_uniform(tl.load(uniform_ptr + index)))


@triton.jit
def circle_kernel(turns_ptr, cosine_ptr, sine_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    cosine, sine = cos_sin_of_turns(tl.load(turns_ptr + index))
    tl.store(cosine_ptr + index, cosine)
    tl.store(sine_ptr + index, sine)


def test_words_and_uniforms_are_those_of_the_definition(device):
    seeds = torch.tensor([0, -1, 7, -(2**63), 2**63 - 1, 0x0123456789ABCDEF])
    positions, iterations = torch.tensor([0, 1, 2**32 - 1, 2**33 + 5, 77, 0]), torch.tensor([0, 2**31, 5, 2**32 - 1, 1, 9])
    words = torch.empty(6, 64, 4, dtype=torch.int64, device=device)
    uniform = torch.empty(6, 64, 4, device=device)
    words_kernel[(6,)](seeds.to(device), positions.to(device), iterations.to(device), words, uniform, BLOCKS=64, PURPOSE=2)
    counter = (torch.arange(64), positions[:, None] & 0xFFFFFFFF, iterations[:, None] & 0xFFFFFFFF, torch.full((1, 1), 2))
    wanted = philox_definition(counter, seeds[:, None])
    assert torch.equal(words.cpu(), wanted)
    assert torch.equal(uniform.cpu(), uniform_definition(wanted))
    assert torch.equal(uniforms(seeds, Purpose.DRAFT, iterations, positions[:, None]), uniform.cpu()[:, :1])


def test_gumbel_noise_is_accurate_at_both_ends(device):
    uniform = torch.cat(
        [2.0 ** -torch.arange(1.0, 34), 1 - 2.0 ** -torch.arange(1.0, 25), torch.rand(199, generator=torch.Generator().manual_seed(0))]
    )
    noise = torch.empty(256, device=device)
    gumbel_kernel[(1,)](uniform.to(device), noise, N=256)
    assert torch.allclose(noise.cpu().double(), gumbel_definition(uniform.double()), rtol=2e-6, atol=1e-6)


def test_cosine_and_sine_go_round_the_circle(device):
    turns = torch.cat([torch.linspace(0, 1 - 2.0**-24, 1016), torch.tensor([2.0**-33, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875])])
    cosine, sine = torch.empty(2, 1024, device=device)
    circle_kernel[(1,)](turns.to(device), cosine, sine, N=1024)
    angle = 2 * torch.pi * turns.double()
    assert (cosine.cpu() - angle.cos()).abs().max() < 3e-7
    assert (sine.cpu() - angle.sin()).abs().max() < 3e-7


def test_definitions_of_noise_use_words_of_their_own():
    seeds, position = torch.tensor([3]), torch.tensor([[5]])
    assert not torch.allclose(gumbel_noise(seeds, position, 4), normal_noise(seeds, position, 4))
