"""Device functions: what a draw needs to know of one split of a row whose candidates hold all that has mass; the split itself is not read again."""

import triton
import triton.language as tl

from .accept import draft_probability
from .logits import gumbel_from_uniform, is_kept, philox, probability, scaled_logits, uniform_from_bits

GUMBEL = tl.constexpr(1)  # Purpose.GUMBEL


@triton.jit
def load_candidates(
    candidates_ptr, logits_ptr, uncond_ptr, allowed_ptr, row, part, offset, uncond_offset, stride_v, uncond_stride_v, scale, temperature,
    SPLITS: tl.constexpr, CANDIDATES: tl.constexpr, SPLIT: tl.constexpr, HAS_UNCOND: tl.constexpr, HAS_ALLOWED: tl.constexpr,
):  # fmt: skip
    """z and place in the split ``part``, both ``[1, CANDIDATES]``: −inf and −1 behind the candidates that there are."""
    places = (row[:, None] * SPLITS + part) * CANDIDATES + tl.arange(0, CANDIDATES)[None, :]
    local = tl.load(candidates_ptr + places).to(tl.int32)
    ids = part * SPLIT + local
    z = scaled_logits(
        logits_ptr, uncond_ptr, allowed_ptr,
        offset[:, None] + ids.to(tl.int64) * stride_v, uncond_offset[:, None] + ids.to(tl.int64) * uncond_stride_v,
        ids, local >= 0, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    return z, local


@triton.jit
def _store_by_block(masses_ptr, masses, block, first, BLOCKS: tl.constexpr, PER_SPLIT: tl.constexpr):
    for place in tl.static_range(PER_SPLIT):
        if first + place < BLOCKS:
            tl.store(masses_ptr + first + place, tl.sum(tl.where(block == place, masses, 0.0), axis=1))


@triton.jit
def store_block_sums(masses_ptr, z, local, part, threshold, cut, logsumexp, SPLIT: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """p of the candidates, ``[1, CANDIDATES]``; its sums over the blocks that the split consists of are stored in ``masses_ptr [BLOCKS]``."""
    p = probability(z, threshold[:, None], cut[:, None], logsumexp[:, None], part * SPLIT + local)
    _store_by_block(masses_ptr, p, local // BLOCK, part * (SPLIT // BLOCK), BLOCKS, SPLIT // BLOCK)
    return p


@triton.jit
def store_residual_sums(
    masses_ptr,  # [BLOCKS], of the row, written where the split has them
    p, local, part,
    last_ptr, last_uncond_ptr, allowed_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
    b, W, source, draft, uniform_log, scale, temperature,
    last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):  # fmt: skip
    """Sums of max(0, p − q) over the same blocks; q is asked for where p is not 0, for nothing can be left elsewhere."""
    q = draft_probability(
        last_ptr, last_uncond_ptr, allowed_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
        part * SPLIT + local, p > 0.0, b, W, source, draft, uniform_log, scale, temperature,
        last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
        HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
    )  # fmt: skip
    residual = tl.where(p > 0.0, tl.maximum(p - q, 0.0), 0.0)
    _store_by_block(masses_ptr, residual, local // BLOCK, part * (SPLIT // BLOCK), BLOCKS, SPLIT // BLOCK)


@triton.jit
def noisy_candidates(z, ids, threshold, cut, logsumexp, seed, position):
    """log p + Gumbel noise, ``[1, CANDIDATES]``; −inf where nothing can be drawn. An id has the noise that it has in a sweep, one word of four."""
    words = philox(seed[:, None], ids // 4, position[:, None], position[:, None] * 0, GUMBEL)
    lane = ids % 4
    word = tl.where(lane == 0, words[0], tl.where(lane == 1, words[1], tl.where(lane == 2, words[2], words[3])))
    possible = is_kept(z, threshold[:, None], cut[:, None], ids) & (z < float("inf")) & (z > float("-inf"))
    return tl.where(possible, z - logsumexp[:, None] + gumbel_from_uniform(uniform_from_bits(word)), float("-inf"))
