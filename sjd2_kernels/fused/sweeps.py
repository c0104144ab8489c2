"""Device functions: the border of a row whose candidates do not suffice, by sweeping the row for every step of the search. Slow, rare, as exact."""

import triton
import triton.language as tl

from .logits import HIGHEST_KEY, LOWEST_KEY, key_value, ordered_key, scaled_logits


@triton.jit
def _measure(
    logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
    lowest, highest, id_end, k_border, k_cut,
    BLOCK_V: tl.constexpr, HAS_UNCOND: tl.constexpr, HAS_ALLOWED: tl.constexpr,
):  # fmt: skip
    """Count and mass of a row's ids below ``id_end`` with a key from ``lowest`` to ``highest``, of those that top-k left.

    A sweep of the row, without the splits that have nothing as high: where the highest ids are crowded in one, the others are seldom read.
    """
    least = tl.max(lowest, axis=0)
    count = tl.zeros([1], tl.int32)
    mass = tl.zeros([1], tl.float32)
    for start in range(0, vocab, BLOCK_V):
        if ordered_key(tl.load(part_max_ptr + start // BLOCK_V)) >= least:
            ids = start + tl.arange(0, BLOCK_V)[None, :]
            present = ids < vocab
            z = scaled_logits(
                logits_ptr, uncond_ptr, allowed_ptr, offset + ids.to(tl.int64) * stride_v, uncond_offset + ids.to(tl.int64) * uncond_stride_v,
                ids, present, scale, temperature, HAS_UNCOND, HAS_ALLOWED,
            )  # fmt: skip
            z = tl.where(z < float("inf"), z, float("-inf"))
            key = ordered_key(z)
            inside = present & (key >= lowest[:, None]) & (key <= highest[:, None]) & (ids < id_end[:, None])
            inside = inside & ((key > k_border[:, None]) | ((key == k_border[:, None]) & (ids <= k_cut[:, None])))
            count += tl.sum(inside.to(tl.int32), axis=1)
            mass += tl.sum(tl.where(inside, tl.exp(z - maximum[:, None]), 0.0), axis=1)
    return count, mass


@triton.jit
def border_by_sweeps(
    logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
    k, target, k_border, k_cut,
    BY_MASS: tl.constexpr, ID_BITS: tl.constexpr, BLOCK_V: tl.constexpr, HAS_UNCOND: tl.constexpr, HAS_ALLOWED: tl.constexpr,
):  # fmt: skip
    """Border key and cut of one row (vectors of length 1) whose candidates do not suffice: the searches of ``search.py``, by sweeps."""
    weight = k * 0 + LOWEST_KEY
    border = weight
    highest = k * 0 + HIGHEST_KEY
    end = k * 0 + vocab
    for _ in range(32):
        candidate = border ^ weight
        count, mass = _measure(
            logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
            candidate, highest, end, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
        )  # fmt: skip
        if BY_MASS:
            border = tl.where(mass >= target, candidate, border)
        else:
            border = tl.where(count >= k, candidate, border)
        weight = tl.where(weight < 0, 0x40000000, weight >> 1)
    tied_count, _ = _measure(
        logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
        border, border, end, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    above_count, above_mass = _measure(
        logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
        tl.where(border == HIGHEST_KEY, border, border + 1), highest, end, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    if BY_MASS:
        each = tl.maximum(tl.exp(key_value(border) - maximum), 1.2e-38)
        wanted = tl.minimum(tl.maximum(tl.ceil(tl.div_rn(target - above_mass, each)), 1.0), 2147483520.0).to(tl.int32)
        wanted = tl.minimum(wanted, tied_count)
    else:
        wanted = k - above_count
    below = k * 0
    for step in range(ID_BITS):
        candidate = below + (1 << (ID_BITS - 1 - step))
        count, mass = _measure(
            logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
            border, border, candidate, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
        )  # fmt: skip
        below = tl.where(count < wanted, candidate, below)
    _, kept_mass = _measure(
        logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
        border, border, below + 1, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    return border, below, above_mass + kept_mass
