"""The random-number contract: counter-based words that depend on what they are for, and on nothing else.

Words come from Philox 4x32-10 (Salmon et al., SC 2011). The key is the row's 64-bit seed; the counter is

    (block, position, iteration, purpose)

with ``position`` the absolute index of the token in its image, ``iteration`` the row's own forward count and ``block``
the token id divided by four: the four output words of one block serve four consecutive token ids. Purposes that must
not change between iterations (:attr:`Purpose.GUMBEL`, :attr:`Purpose.NOISE`) pass iteration 0. A row's noise therefore depends neither on its place
in the batch, nor on the batch size, nor on the window size, and every back-end that follows this file draws the same words.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch

__all__ = ["Purpose", "gumbel_from_uniform", "gumbel_noise", "normal_noise", "philox", "uniform_from_bits", "uniforms"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(IntEnum):
    """What a word is for; words of different purposes are independent."""

    VERIFY = 0
    """Word 0 decides acceptance, word 1 resamples a slot that was not kept."""
    GUMBEL = 1
    """Frozen noise of the ``jacobi`` and ``gs-sjd`` rules, one word per token id; iteration 0 always."""
    DRAFT = 2
    """Word 0 draws the first draft of a fresh slot."""
    NOISE = 3
    """Gaussian noise of a fresh slot's embedding, one word per dimension (in place of the token id); iteration 0 always."""


def philox(counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], seed: torch.Tensor) -> torch.Tensor:
    """Philox 4x32-10 of broadcastable int64 counters.

    Args:
        counter: four int64 tensors of values in [0, 2³²), broadcastable against each other and ``seed``.
        seed: int64, all 64 bits used as the key.

    Returns:
        int64 ``[..., 4]`` of words in [0, 2³²).
    """
    shape = torch.broadcast_shapes(*(c.shape for c in counter), seed.shape)
    c0, c1, c2, c3 = (c.expand(shape) for c in counter)
    seed = seed.view((1,) * (len(shape) - seed.ndim) + seed.shape)
    # Both multiplications of a round run as one operation on a leading axis of two lanes. The lanes swap every round
    # (the new c0 comes from c2's product), so the constants of odd rounds are swapped instead of the data.
    lanes = (2,) + (1,) * len(shape)
    # Filled on the device: a tensor of Python's numbers would come from the host, every time.
    straight = torch.stack([torch.full((), one, device=seed.device) for one in _MULTIPLIERS]).view(lanes)
    multipliers = (straight, straight.flip(0))
    low, high = seed & _MASK, (seed >> 32) & _MASK
    keys = [
        torch.stack([high + r * _WEYL[1], low + r * _WEYL[0]] if r % 2 == 0 else [low + r * _WEYL[0], high + r * _WEYL[1]]) & _MASK
        for r in range(_ROUNDS)
    ]
    even, odd = torch.stack([c0, c2]), torch.stack([c3, c1])
    for r in range(_ROUNDS):  # in place where it can be: half of the time would go into new memory
        product = even.mul_(multipliers[r % 2])  # wraps modulo 2⁶⁴: the bits are those of the unsigned product
        even = (product >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(keys[r])
        odd = product.bitwise_and_(_MASK).flip(0)
    # After ten rounds the lanes are in their first order again.
    return torch.stack([even[0], odd[1], even[1], odd[0]], dim=-1)


def uniform_from_bits(words: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Words in [0, 2³²) to uniforms in (0, 1): all 32 bits, centred, at most 1 − 2⁻²⁴, never 0 and never 1.

    The cap matters in float32, where the largest words would round to 1; it is the same in every dtype, so that a
    float64 run sees the same uniforms.
    """
    return ((words.to(dtype) + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)


def gumbel_from_uniform(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise; the large values that win an arg-max come from small uniforms, where floats are dense."""
    return -torch.log(-torch.log1p(-uniform))


def uniforms(
    seeds: torch.Tensor,
    purpose: Purpose,
    iteration: torch.Tensor,
    position: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The four uniforms of every (row, position).

    Args:
        seeds: int64 ``[B]``.
        purpose: what the numbers are for.
        iteration: int64 ``[B]``, the row's own forward count.
        position: int64 ``[B, W]``, absolute token positions.
        dtype: of the result.

    Returns:
        ``dtype [B, W, 4]`` in (0, 1).
    """
    fixed = torch.full_like(position, int(purpose))
    words = philox((torch.zeros_like(position), position & _MASK, (iteration & _MASK)[:, None], fixed), seeds[:, None])
    return uniform_from_bits(words, dtype)


def gumbel_noise(
    seeds: torch.Tensor,
    position: torch.Tensor,
    vocab_size: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Standard Gumbel noise frozen per (seed, position, token id).

    Args:
        seeds: int64 ``[B]``.
        position: int64 ``[B, W]``, absolute token positions.
        vocab_size: V.
        dtype: of the result.

    Returns:
        ``dtype [B, W, V]``.
    """
    blocks = torch.arange((vocab_size + 3) // 4, device=position.device)
    purpose = position.new_full((1, 1, 1), int(Purpose.GUMBEL))
    words = philox((blocks, position[..., None] & _MASK, torch.zeros_like(purpose), purpose), seeds[:, None, None])
    return gumbel_from_uniform(uniform_from_bits(words.flatten(-2)[..., :vocab_size], dtype))


def normal_noise(seeds: torch.Tensor, position: torch.Tensor, width: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal noise frozen per (seed, position, dimension), by Box and Muller.

    Of the four words of a block the first two give dimensions 0 and 1, the others 2 and 3:
    ``sqrt(−2 log u)·cos(2πv)`` and ``sqrt(−2 log u)·sin(2πv)``.

    Args:
        seeds: int64 ``[B]``.
        position: int64 ``[B, W]``, absolute token positions.
        width: D.
        dtype: of the result.

    Returns:
        ``dtype [B, W, D]``.
    """
    blocks = torch.arange((width + 3) // 4, device=position.device)
    purpose = position.new_full((1, 1, 1), int(Purpose.NOISE))
    words = philox((blocks, position[..., None] & _MASK, torch.zeros_like(purpose), purpose), seeds[:, None, None])
    uniform = uniform_from_bits(words, dtype).unflatten(-1, (2, 2))
    radius = (-2 * uniform[..., 0].log()).sqrt()
    angle = 2 * math.pi * uniform[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-3)[..., :width]
