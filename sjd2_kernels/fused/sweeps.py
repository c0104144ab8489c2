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
def borders_by_sweeps(
    logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature, maximum,
    row_mass, top_k, top_p,
    TOP_K: tl.constexpr, TOP_P: tl.constexpr, ID_BITS: tl.constexpr, BLOCK_V: tl.constexpr, HAS_UNCOND: tl.constexpr, HAS_ALLOWED: tl.constexpr,
):  # fmt: skip
    """Threshold, cut and mass of what is kept of one row (vectors of length 1) whose candidates do not suffice: ``borders`` by sweeps.

    Bit by bit, first of the border's key and then of the cut. A sweep stands in the code once: compiling it takes long.
    """
    threshold = maximum * 0.0 + float("-inf")
    cut = top_k * 0 + vocab
    k_border, k_cut = top_k * 0 + LOWEST_KEY, cut
    kept_mass = row_mass
    for turn in range(0 if TOP_K else 1, 2 if TOP_P else 1):
        by_mass = turn > 0
        limited = tl.where(by_mass, top_p < 1.0, (top_k > 0) & (top_k < vocab))
        target = tl.where(by_mass, top_p * kept_mass, top_k.to(tl.float32))
        border, bit = top_k * 0 + LOWEST_KEY, top_k * 0 + LOWEST_KEY
        below, wanted = top_k * 0, top_k * 0
        # At and above the border; and above it, which is where the last probe that was too high lay.
        at, above, mass_above = top_k * 0, top_k * 0, maximum * 0.0
        step, steps = 0, tl.max(limited.to(tl.int32), axis=0) * (32 + ID_BITS)
        while step < steps:
            in_ids = step > 31
            probe = tl.where(in_ids, border, border ^ bit)
            end = tl.where(in_ids, below + (1 << (31 + ID_BITS - tl.maximum(step, 32))), vocab)
            count, mass = _measure(
                logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr, offset, uncond_offset, stride_v, uncond_stride_v, vocab, scale, temperature,
                maximum, probe, tl.where(in_ids, border, HIGHEST_KEY), end, k_border, k_cut, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
            )  # fmt: skip
            if in_ids:
                below = tl.where(count < wanted, end, below)
            else:
                reached = tl.where(by_mass, mass, count.to(tl.float32)) >= target
                border, at = tl.where(reached, probe, border), tl.where(reached, count, at)
                above, mass_above = tl.where(reached, above, count), tl.where(reached, mass_above, mass)
                bit = tl.where(step == 0, 0x40000000, bit >> 1)
                each = tl.where(by_mass, tl.maximum(tl.exp(key_value(border) - maximum), 1.2e-38), 1.0)
                higher = tl.where(by_mass, mass_above, above.to(tl.float32))
                wanted = tl.minimum(tl.maximum(tl.ceil(tl.div_rn(target - higher, each)), 1.0), 2147483520.0).to(tl.int32)
                wanted = tl.minimum(wanted, at - above)
            step += 1
        # A top-p next to 1 may not be reached, as the masses were summed in another order before: it keeps what there is.
        found = limited & (border > LOWEST_KEY)
        threshold, cut = tl.where(found, key_value(border), threshold), tl.where(found, below, cut)
        k_border, k_cut = tl.where(found, border, k_border), tl.where(found, below, k_cut)
        kept_mass = tl.where(found, mass_above + wanted.to(tl.float32) * tl.exp(key_value(border) - maximum), kept_mass)
    return threshold, cut, kept_mass
