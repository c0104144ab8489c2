"""Kernels: threshold, cut and log-sum-exp of every row of logits, and which drafts are accepted.

A row of at most ``SINGLE`` ids is held in the registers of one program and read once:

    row_statistics_kernel      4 B per id with two half-precision inputs

A longer row is split over programs, and again read once:

    split_sweep_kernel         4 B per id, plus 2 B for each of the candidates that it leaves, 8,192 per row at most
    split_merge_kernel         the candidates of a row, gathered again: at most 2 · 8,192 loads of 32 B sectors per row

Every split leaves the ids above a border of its own as candidates, so their union holds all ids of the row above the highest of these borders; a
threshold above it is exact. In the rare row where it is not (top-k or a nucleus of about as many ids as there
are candidates, or nearly all of them in one split) the merging program searches by sweeping the row, which is slow and as exact.
The number of splits follows from V alone and partial results are combined in a fixed order. Counted, not
measured on a GPU: ``docs/kernels.md``.
"""

import triton
import triton.language as tl

from .accept import BAD, COMPLETE, accept
from .logits import LOWEST_KEY, MASKED_KEY, ordered_key, scaled_logits, tempered
from .search import border_above, borders
from .sweeps import borders_by_sweeps


@triton.jit
def _row_parameters(guidance_ptr, temperature_ptr, top_k_ptr, top_p_ptr, b, live, vocab):
    scale = tl.load(guidance_ptr + b, mask=live, other=1.0)
    temperature = tl.load(temperature_ptr + b, mask=live, other=1.0)
    top_k = tl.minimum(tl.load(top_k_ptr + b, mask=live, other=0), vocab).to(tl.int32)
    top_p = tl.load(top_p_ptr + b, mask=live, other=1.0)
    return scale, temperature, top_k, top_p


@triton.jit
def row_statistics_kernel(
    logits_ptr,  # [B, W, V], like logits_uncond, last and last_uncond
    uncond_ptr,
    allowed_ptr,  # [V]
    guidance_ptr,  # [B], like temperature, top_k and top_p
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    last_ptr,
    last_uncond_ptr,
    last_threshold_ptr,  # [B, W], like last_cut, last_logsumexp, drafts and q_row
    last_cut_ptr,
    last_logsumexp_ptr,
    drafts_ptr,
    q_row_ptr,
    seeds_ptr,  # [B], like iteration and position
    iteration_ptr,
    position_ptr,
    threshold_ptr,  # [B, W], written, like cut, logsumexp, uniform_log and flags
    cut_ptr,
    logsumexp_ptr,
    uniform_log_ptr,
    flags_ptr,
    counters_ptr,  # [1 + rows that draw], zeroed
    counters,
    rows,
    W,
    vocab,
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
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    ACCEPT: tl.constexpr,
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):
    """One tile ``[ROWS, BLOCK_V]`` of whole rows per program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    b, w = row // W, row % W
    scale, temperature, top_k, top_p = _row_parameters(guidance_ptr, temperature_ptr, top_k_ptr, top_p_ptr, b, live, vocab)
    ids = tl.arange(0, BLOCK_V)[None, :]
    present = live[:, None] & (ids < vocab)
    z = scaled_logits(
        logits_ptr, uncond_ptr, allowed_ptr,
        (b * stride_b + w * stride_w)[:, None] + ids.to(tl.int64) * stride_v,
        (b * uncond_stride_b + w * uncond_stride_w)[:, None] + ids.to(tl.int64) * uncond_stride_v,
        ids, present, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
    )  # fmt: skip
    maximum = tl.max(z, axis=1)
    bad = top_k * 0
    if tl.sum(z - z) != 0.0:  # something that is masked or not there; or NaN and +inf, which nearly no row has
        finite = z < float("inf")
        bad = tl.max((finite == 0).to(tl.int32), axis=1)
        z = tl.where(finite, z, float("-inf"))
        maximum = tl.max(z, axis=1)
    bad = tl.where(maximum == float("-inf"), 1, bad)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    row_mass = maximum * 0.0
    if tl.max(((top_k <= 0) | (top_k >= vocab)).to(tl.int32)) > 0:
        row_mass = tl.sum(tl.exp(z - maximum[:, None]), axis=1)
    threshold, cut, logsumexp, _ = borders(z, present, ids, maximum, row_mass, top_k, top_p, vocab, maximum * 0.0 + vocab, TOP_K, TOP_P)
    tl.store(threshold_ptr + row, threshold, mask=live)
    tl.store(cut_ptr + row, cut.to(tl.int64), mask=live)
    tl.store(logsumexp_ptr + row, logsumexp, mask=live)
    for counter in range(tl.program_id(0), counters, tl.num_programs(0)):
        tl.store(counters_ptr + counter, 0)
    if ACCEPT:
        usable = maximum * 0.0 + vocab
        if HAS_ALLOWED:
            usable = maximum * 0.0 + tl.sum(tl.where(tl.load(allowed_ptr + ids, mask=ids < vocab, other=0) != 0, 1.0, 0.0), axis=1)
        uniform_log = -tl.log(usable)
        flags = accept(
            logits_ptr, uncond_ptr, allowed_ptr, last_ptr, last_uncond_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
            drafts_ptr, q_row_ptr, seeds_ptr, iteration_ptr, position_ptr,
            row, live, b, w, W, threshold, cut, logsumexp, uniform_log, scale, temperature, log_keep_ratio,
            stride_b, stride_w, stride_v, uncond_stride_b, uncond_stride_w, uncond_stride_v,
            last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
            HAS_UNCOND, HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
        )  # fmt: skip
        tl.store(uniform_log_ptr + row, uniform_log, mask=live)
        tl.store(flags_ptr + row, flags + tl.where(bad != 0, BAD, 0), mask=live)


@triton.jit
def split_sweep_kernel(
    logits_ptr,  # [B, W, V], like logits_uncond
    uncond_ptr,
    allowed_ptr,  # [V]
    guidance_ptr,  # [B], like temperature and top_k
    temperature_ptr,
    top_k_ptr,
    part_max_ptr,  # [rows, SPLITS], written, like the other parts
    part_mass_ptr,
    part_usable_ptr,
    part_bad_ptr,
    part_border_ptr,
    candidates_ptr,  # int16 [rows, SPLITS, PER_SPLIT], written: ids within the split, rising, and −1 behind them
    W,
    vocab,
    stride_b,
    stride_w,
    stride_v,
    uncond_stride_b,
    uncond_stride_w,
    uncond_stride_v,
    SPLITS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PER_SPLIT: tl.constexpr,
    FIRST_GUESS: tl.constexpr,  # share of the way from mean to maximum at which the border is looked for first
    SEARCH: tl.constexpr,
    ALIGN: tl.constexpr,  # divides vocab and the strides of rows
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
):
    """One split of one row per program, as a tile ``[BLOCK_V / ALIGN, ALIGN]``: what a load brings lies in one thread."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    b, w = row // W, row % W
    one = tl.zeros([1, 1], tl.int32)
    scale, temperature, top_k = tl.load(guidance_ptr + b + one), tl.load(temperature_ptr + b + one), tl.load(top_k_ptr + b)
    group = tl.arange(0, BLOCK_V // ALIGN)
    local = group[:, None] * ALIGN + tl.arange(0, ALIGN)[None, :]
    ids = split * BLOCK_V + local
    # Multiples of a constant tell the compiler how many logits a load may take.
    present = ids < vocab // ALIGN * ALIGN
    offset = (b * (stride_b // ALIGN) + w * (stride_w // ALIGN)) * ALIGN
    uncond_offset = (b * (uncond_stride_b // ALIGN) + w * (uncond_stride_w // ALIGN)) * ALIGN
    finite = tl.minimum(vocab - split * BLOCK_V, BLOCK_V)
    usable, bad = finite.to(tl.float32), 0
    places, uncond_places = offset + ids.to(tl.int64) * stride_v, uncond_offset + ids.to(tl.int64) * uncond_stride_v
    if HAS_ALLOWED:
        z = scaled_logits(logits_ptr, uncond_ptr, allowed_ptr, places, uncond_places, ids, present, scale, temperature, HAS_UNCOND, True)
        usable = tl.sum(tl.where(tl.load(allowed_ptr + ids, mask=present, other=0) != 0, 1.0, 0.0))
        irregular = 1.0
    else:
        z = tl.load(logits_ptr + places, mask=present, other=float("-inf")).to(tl.float32)
        if HAS_UNCOND:
            uncond = tl.load(uncond_ptr + uncond_places, mask=present & (scale != 1.0), other=0.0).to(tl.float32)
            z = uncond + scale * (z - uncond)
        z = tempered(z, temperature)
        # z − z is 0 where z is finite, and NaN elsewhere.
        if finite < BLOCK_V:
            irregular = tl.sum(tl.where(present, z - z, 0.0))
        else:
            irregular = tl.sum(z - z)
    maximum = tl.max(z)
    if irregular != 0.0:  # ids that are masked or not allowed; or NaN and +inf, which nearly no row has
        if not HAS_ALLOWED:  # read again: registers for both are too many
            z = scaled_logits(logits_ptr, uncond_ptr, allowed_ptr, places, uncond_places, ids, present, scale, temperature, HAS_UNCOND, False)
        valid = z < float("inf")
        bad = tl.max((valid == 0).to(tl.int32))
        z = tl.where(valid, z, float("-inf"))
        maximum = tl.max(z)
        finite = tl.sum(tl.where(z > float("-inf"), 1.0, 0.0)).to(tl.int32)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    # Where top-k leaves some of the ids, what matters is their mass, which the merge adds up.
    mass = 0.0
    if (top_k <= 0) | (top_k >= vocab):
        mass = tl.sum(tl.exp(z - base))
    part = row * SPLITS + split
    tl.store(part_max_ptr + part, maximum)
    tl.store(part_mass_ptr + part, mass)
    tl.store(part_usable_ptr + part, usable)
    tl.store(part_bad_ptr + part, bad)
    if SEARCH:
        border, total = border_above(z, base, finite, PER_SPLIT, ALIGN, FIRST_GUESS)
        chosen = tl.where(z > border, 1.0, 0.0)
        of_group = tl.sum(chosen, axis=1).to(tl.int32)
        first, second = tl.split(tl.trans(tl.reshape(of_group, [2, BLOCK_V // ALIGN // 2])))
        both = first + second * 65536
        before = tl.cumsum(both, axis=0) - both
        place = tl.reshape(tl.trans(tl.join(before & 65535, (before >> 16) + tl.sum(first, axis=0))), [BLOCK_V // ALIGN])
        candidates = candidates_ptr + part * PER_SPLIT
        # Column by column: a store of the whole tile would have the threads exchange all its addresses first.
        for lane in tl.static_range(ALIGN):
            taken = tl.sum(tl.where(tl.arange(0, ALIGN)[None, :] == lane, chosen, 0.0), axis=1) > 0.0
            tl.store(candidates + place, (group * ALIGN + lane).to(tl.int16), mask=taken)
            place = tl.where(taken, place + 1, place)
        behind = tl.arange(0, PER_SPLIT)
        tl.store(candidates + behind, tl.full([PER_SPLIT], -1, tl.int16), mask=behind >= total)
        tl.store(part_border_ptr + part, ordered_key(border))


@triton.jit
def split_merge_kernel(
    logits_ptr,
    uncond_ptr,
    allowed_ptr,
    guidance_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
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
    part_max_ptr,
    part_mass_ptr,
    part_usable_ptr,
    part_bad_ptr,
    part_border_ptr,
    candidates_ptr,
    threshold_ptr,
    cut_ptr,
    logsumexp_ptr,
    uniform_log_ptr,
    flags_ptr,
    counters_ptr,
    counters,
    rows,
    W,
    vocab,
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
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ID_BITS: tl.constexpr,
    PER_SPLIT: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    ACCEPT: tl.constexpr,
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):
    """One row per program: the parts of its splits become its statistics."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    live = row < rows
    b, w = row // W, row % W
    scale, temperature, top_k, top_p = _row_parameters(guidance_ptr, temperature_ptr, top_k_ptr, top_p_ptr, b, live, vocab)
    offset, uncond_offset = b * stride_b + w * stride_w, b * uncond_stride_b + w * uncond_stride_w
    split = tl.arange(0, SPLITS_PADDED)[None, :]
    part = row[:, None] * SPLITS + split
    exists = split < SPLITS
    part_max = tl.load(part_max_ptr + part, mask=exists, other=float("-inf"))
    maximum = tl.max(part_max, axis=1)
    bad = tl.max(tl.load(part_bad_ptr + part, mask=exists, other=0), axis=1)
    bad = tl.where(maximum == float("-inf"), 1, bad)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    row_mass = tl.sum(tl.load(part_mass_ptr + part, mask=exists, other=0.0) * tl.exp(part_max - maximum[:, None]), axis=1)
    threshold = maximum * 0.0 + float("-inf")
    cut = top_k * 0 + vocab
    logsumexp = maximum + tl.log(row_mass)
    if TOP_K or TOP_P:
        index = tl.arange(0, SPLITS_PADDED * PER_SPLIT)[None, :]
        of_split = index // PER_SPLIT
        local = tl.load(candidates_ptr + row[:, None] * (SPLITS * PER_SPLIT) + index, mask=of_split < SPLITS, other=-1)
        present = local >= 0
        ids = of_split * BLOCK_V + local.to(tl.int32)
        z = scaled_logits(
            logits_ptr, uncond_ptr, allowed_ptr,
            offset[:, None] + ids.to(tl.int64) * stride_v, uncond_offset[:, None] + ids.to(tl.int64) * uncond_stride_v,
            ids, present, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
        )  # fmt: skip
        z = tl.where(z < float("inf"), z, float("-inf"))
        threshold, cut, logsumexp, relied = borders(z, present, ids, maximum, row_mass, top_k, top_p, vocab, maximum * 0.0 + vocab, TOP_K, TOP_P)
        left_out = tl.max(tl.load(part_border_ptr + part, mask=exists, other=LOWEST_KEY), axis=1)
        if tl.max((relied <= left_out).to(tl.int32), axis=0) > 0:
            threshold, cut, kept_mass = borders_by_sweeps(
                logits_ptr, uncond_ptr, allowed_ptr, part_max_ptr + tl.program_id(0).to(tl.int64) * SPLITS,
                offset[:, None], uncond_offset[:, None], stride_v, uncond_stride_v, vocab,
                scale[:, None], temperature[:, None], maximum, row_mass, top_k, top_p,
                TOP_K, TOP_P, ID_BITS, BLOCK_V, HAS_UNCOND, HAS_ALLOWED,
            )  # fmt: skip
            logsumexp = maximum + tl.log(kept_mass)
    tl.store(threshold_ptr + row, threshold)
    tl.store(cut_ptr + row, cut.to(tl.int64))
    tl.store(logsumexp_ptr + row, logsumexp)
    for counter in range(tl.program_id(0), counters, tl.num_programs(0)):
        tl.store(counters_ptr + counter, 0)
    flags = tl.where(bad != 0, BAD, 0)
    if TOP_K or TOP_P:
        # Then what may be drawn is drawn from the candidates, and the row need not be read again.
        complete = (ordered_key(threshold) > left_out) | (left_out <= MASKED_KEY)
        flags += tl.where(complete, COMPLETE, 0)
    if ACCEPT:
        uniform_log = -tl.log(tl.sum(tl.load(part_usable_ptr + part, mask=exists, other=0.0), axis=1))
        flags += accept(
            logits_ptr, uncond_ptr, allowed_ptr, last_ptr, last_uncond_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
            drafts_ptr, q_row_ptr, seeds_ptr, iteration_ptr, position_ptr,
            row, live, b, w, W, threshold, cut, logsumexp, uniform_log, scale, temperature, log_keep_ratio,
            stride_b, stride_w, stride_v, uncond_stride_b, uncond_stride_w, uncond_stride_v,
            last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
            HAS_UNCOND, HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
        )  # fmt: skip
        tl.store(uniform_log_ptr + row, uniform_log)
    tl.store(flags_ptr + row, flags)
