"""Device functions: where a draft came from, and whether modified rejection sampling keeps it. Vectors over the rows of a tile."""

import triton
import triton.language as tl

from .logits import is_kept, philox, probability, scaled_logits, uniform_from_bits

Q_NONE = tl.constexpr(-1)
Q_UNIFORM = tl.constexpr(-2)
Q_POINT = tl.constexpr(-3)
VERIFY = tl.constexpr(0)

# Bits of a slot's flags.
ACCEPTED = tl.constexpr(1)
RATIO_KEPT = tl.constexpr(2)
BAD = tl.constexpr(4)
COMPLETE = tl.constexpr(8)  # all ids that may be drawn are among the row's candidates


@triton.jit
def log_probability(z, threshold, cut, logsumexp, ids):
    """log p of one id per row; −inf where processing removed it."""
    return tl.where(is_kept(z, threshold, cut, ids), z - logsumexp, float("-inf"))


@triton.jit
def accept(
    logits_ptr,
    uncond_ptr,
    allowed_ptr,
    last_ptr,
    last_uncond_ptr,
    last_threshold_ptr,
    last_cut_ptr,
    last_logsumexp_ptr,
    drafts_ptr,
    q_row_ptr,
    seeds_ptr,
    iteration_ptr,
    position_ptr,
    row,  # [R] int64
    live,  # [R]
    b,  # [R] int64
    w,  # [R] int64
    W,
    threshold,  # [R] of p, like cut and logsumexp
    cut,
    logsumexp,
    uniform_log,  # [R] log q of a uniform draft
    scale,  # [R]
    temperature,  # [R]
    log_keep_ratio,
    stride_b,
    stride_w,
    stride_v,
    uncond_stride_b,
    uncond_stride_w,
    uncond_stride_v,
    last_stride_b,
    last_stride_w,
    last_stride_v,
    last_uncond_stride_b,
    last_uncond_stride_w,
    last_uncond_stride_v,
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):
    """The flags of every row: four gathers, none of which depends on another slot."""
    draft = tl.load(drafts_ptr + row, mask=live, other=0)
    source = tl.load(q_row_ptr + row, mask=live, other=-1)
    z = scaled_logits(
        logits_ptr, uncond_ptr, allowed_ptr,
        b * stride_b + w * stride_w + draft * stride_v,
        b * uncond_stride_b + w * uncond_stride_w + draft * uncond_stride_v,
        draft, live, scale, temperature, HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    log_p = log_probability(z, threshold, cut, logsumexp, draft)
    usable = live
    if HAS_ALLOWED:
        usable = usable & (tl.load(allowed_ptr + draft, mask=live, other=0) != 0)
    log_q = tl.where(source == Q_UNIFORM, tl.where(usable, uniform_log, float("-inf")), 0.0)
    if HAS_LAST:
        from_last = live & (source >= 0)
        slot = tl.where(from_last, source, 0)
        last_row = b * W + slot
        last_z = scaled_logits(
            last_ptr, last_uncond_ptr, allowed_ptr,
            b * last_stride_b + slot * last_stride_w + draft * last_stride_v,
            b * last_uncond_stride_b + slot * last_uncond_stride_w + draft * last_uncond_stride_v,
            draft, from_last, scale, temperature, HAS_LAST_UNCOND, HAS_ALLOWED,
        )  # fmt: skip
        last_log_q = log_probability(
            last_z,
            tl.load(last_threshold_ptr + last_row, mask=from_last, other=0.0),
            tl.load(last_cut_ptr + last_row, mask=from_last, other=0),
            tl.load(last_logsumexp_ptr + last_row, mask=from_last, other=0.0),
            draft,
        )
        log_q = tl.where(from_last, last_log_q, log_q)
        has_q = source != Q_NONE
    else:
        has_q = source < Q_NONE
    seed = tl.load(seeds_ptr + b, mask=live, other=0)
    iteration = tl.load(iteration_ptr + b, mask=live, other=0)
    position = tl.load(position_ptr + b, mask=live, other=0) + w
    word, _, _, _ = philox(seed, row * 0, position, iteration, VERIFY)
    accepted = has_q & (tl.log(uniform_from_bits(word)) + log_q < log_p)
    ratio_kept = has_q & (log_p - log_q > log_keep_ratio)
    return tl.where(accepted, ACCEPTED, 0) + tl.where(ratio_kept, RATIO_KEPT, 0)


@triton.jit
def draft_probability(
    last_ptr,
    last_uncond_ptr,
    allowed_ptr,
    last_threshold_ptr,
    last_cut_ptr,
    last_logsumexp_ptr,
    ids,  # [R, N] int32
    mask,  # [R, N], of the rows that need q
    b,  # [R] int64
    W,
    source,  # [R] q_row
    draft,  # [R]
    uniform_log,  # [R]
    scale,  # [R]
    temperature,  # [R]
    last_stride_b,
    last_stride_w,
    last_stride_v,
    last_uncond_stride_b,
    last_uncond_stride_w,
    last_uncond_stride_v,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):
    """q of every id, ``[R, N]``."""
    usable = mask
    if HAS_ALLOWED:
        usable = usable & (tl.load(allowed_ptr + ids, mask=mask, other=0) != 0)
    q = tl.where(usable & (source == Q_UNIFORM)[:, None], tl.exp(uniform_log)[:, None], 0.0)
    q = tl.where((source == Q_POINT)[:, None] & (ids == draft[:, None]), 1.0, q)
    if HAS_LAST:
        slot = tl.maximum(source, 0)  # a select on the sign is more than Triton 3.6 compiles where short rows share a program
        from_last = mask & (source >= 0)[:, None]
        last_row = b * W + slot
        rows = source >= 0
        last_z = scaled_logits(
            last_ptr, last_uncond_ptr, allowed_ptr,
            (b * last_stride_b + slot * last_stride_w)[:, None] + ids.to(tl.int64) * last_stride_v,
            (b * last_uncond_stride_b + slot * last_uncond_stride_w)[:, None] + ids.to(tl.int64) * last_uncond_stride_v,
            ids, from_last, scale[:, None], temperature[:, None], HAS_LAST_UNCOND, HAS_ALLOWED,
        )  # fmt: skip
        last_q = probability(
            last_z,
            tl.load(last_threshold_ptr + last_row, mask=rows, other=0.0)[:, None],
            tl.load(last_cut_ptr + last_row, mask=rows, other=0).to(tl.int32)[:, None],
            tl.load(last_logsumexp_ptr + last_row, mask=rows, other=0.0)[:, None],
            ids,
        )
        q = tl.where(from_last, last_q, q)
    return q
