"""Kernel: the tokens of every slot that is not kept, and the commit count.

    accepted slots             nothing is read
    fresh draws from p         4 B per id with two half-precision inputs, for these rows only
    residual draws             8 B per id (p and q), for these rows only
    frozen-noise draws         4 B per id and a quarter of a Philox call

A row over several programs whose candidates (``statistics.py``) hold all that may be drawn is not read again: instead of its ids they are, and the
block that the token is in.

Draws follow ``sampling/inverse_cdf.py``: a program sums p (and max(0, p − q)) over blocks of ``BLOCK`` ids and leaves one number per block;
the last of a row's programs to arrive picks the block with the row's one uniform and looks at that block again. The last program of all
counts what is final. Who arrives last changes nothing in the result: every sum has a fixed order and integer counters are the only
atomics. Not measured on a GPU.
"""

import triton
import triton.language as tl

from .accept import ACCEPTED, BAD, COMPLETE, Q_NONE, RATIO_KEPT, draft_probability
from .candidates import GUMBEL, load_candidates, noisy_candidates, store_block_sums, store_residual_sums
from .logits import gumbel_from_uniform, is_kept, philox, probability, scaled_logits, uniform_from_bits

RULE_FRESH = tl.constexpr(0)
RULE_COUPLED = tl.constexpr(1)
RULE_GUMBEL_TAIL = tl.constexpr(2)
RULE_GUMBEL = tl.constexpr(3)
RULE_KEEP_RATIO = tl.constexpr(4)

KEEP = tl.constexpr(0)
RESIDUAL = tl.constexpr(1)
FRESH = tl.constexpr(2)
FROZEN = tl.constexpr(3)


@triton.jit
def _first_above(masses, running, target, index, size):
    """``inverse_cdf._first_above``; a parallel running sum may fall by a rounding, so ids without mass are left out by name."""
    positive = masses > 0.0
    first = tl.min(tl.where(positive & (running > target[:, None]), index, size), axis=1)
    return tl.minimum(first, tl.max(tl.where(positive, index, 0), axis=1))


@triton.jit
def _better(noisy, ids, best, best_id, vocab):
    """The best so far, and its id; of equal ones the lowest."""
    top = tl.max(noisy, axis=1)
    top_id = tl.min(tl.where(noisy == top[:, None], ids, vocab), axis=1)
    better = (top > best) | ((top == best) & (top_id < best_id))
    return tl.where(better, top, best), tl.where(better, top_id, best_id)


@triton.jit
def _count_commits(
    tokens_ptr, kept_ptr, clean_ptr, forced_ptr, flags_ptr, remaining_ptr, committed_ptr, invalid_ptr, batch, W, end_id,
    BATCH_ROWS: tl.constexpr, W_PADDED: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """The definition's ``_commit_count``, and which rows met logits that cannot be drawn from."""
    slot = tl.arange(0, W_PADDED)[None, :]
    for start in range(0, batch, BATCH_ROWS):
        b = start + tl.arange(0, BATCH_ROWS)
        live = b < batch
        exists = live[:, None] & (slot < W)
        place = b.to(tl.int64)[:, None] * W + slot
        # Written by other programs: not from this multiprocessor's own cache.
        kept = tl.load(kept_ptr + place, mask=exists, other=0, cache_modifier=".cg") != 0
        token = tl.load(tokens_ptr + place, mask=exists, other=-1, cache_modifier=".cg")
        clean = tl.load(clean_ptr + place, mask=exists, other=0) != 0
        forced = tl.load(forced_ptr + place, mask=exists, other=0)
        flags = tl.load(flags_ptr + place, mask=exists, other=0)
        remaining = tl.load(remaining_ptr + b, mask=live, other=0)
        # The last draft was not fed to the model, so it cannot vouch for a token after it.
        stops = ((kept & clean) == 0) | (slot >= W - 1)
        count = tl.minimum(tl.min(tl.where(stops, slot, W_PADDED), axis=1) + 1, remaining)
        if end_id >= 0:
            count = tl.minimum(count, tl.min(tl.where(exists & (token == end_id), slot + 1, W), axis=1))
        tl.store(committed_ptr + b, count, mask=live)
        bad = tl.max((exists & ((flags & BAD) != 0) & (forced < 0)).to(tl.int32), axis=1) > 0
        tl.store(invalid_ptr + b, bad & (remaining > 0), mask=live)


@triton.jit
def draw_kernel(
    logits_ptr,  # [B, W, V], like logits_uncond, last and last_uncond
    uncond_ptr,
    allowed_ptr,  # [V]
    guidance_ptr,  # [B], like temperature, seeds and iteration
    temperature_ptr,
    last_ptr,
    last_uncond_ptr,
    last_threshold_ptr,  # [B, W], like last_cut and last_logsumexp
    last_cut_ptr,
    last_logsumexp_ptr,
    threshold_ptr,  # [B, W], or [B, 1] for all slots of a row, like cut and logsumexp
    cut_ptr,
    logsumexp_ptr,
    uniform_log_ptr,  # [B, W], like flags, drafts, q_row, forced and clean
    flags_ptr,
    drafts_ptr,
    q_row_ptr,
    forced_ptr,
    clean_ptr,
    remaining_ptr,  # [B]
    seeds_ptr,
    iteration_ptr,
    position_ptr,  # [B]; [B, W] without VERIFY
    candidates_ptr,  # int16 [rows, splits of the statistics, CANDIDATES]
    masses_ptr,  # [rows, 2, BLOCKS], scratch: block sums of p and of the residual
    best_value_ptr,  # [rows, SPLITS], scratch: best of the frozen draw
    best_id_ptr,
    counters_ptr,  # [1 + rows], zero
    tokens_ptr,  # [B, W], written
    kept_ptr,
    committed_ptr,  # [B], written
    invalid_ptr,
    batch,
    W,
    vocab,
    end_id,
    stride_statistics_b,
    stride_statistics_w,
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
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    PER_SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    CANDIDATES: tl.constexpr,  # per split of the statistics, 0 without any
    SPLIT: tl.constexpr,
    BATCH_ROWS: tl.constexpr,
    W_PADDED: tl.constexpr,
    VERIFY: tl.constexpr,
    RULE: tl.constexpr,
    PURPOSE: tl.constexpr,
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_LAST_UNCOND: tl.constexpr,
):
    """``SPLITS`` programs per tile of ``ROWS`` rows; each sums ``PER_SPLIT`` blocks."""
    rows = batch * W
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    b, w = row // W, row % W
    scale = tl.load(guidance_ptr + b, mask=live, other=1.0)
    temperature = tl.load(temperature_ptr + b, mask=live, other=1.0)
    statistics = b * stride_statistics_b + w * stride_statistics_w
    threshold = tl.load(threshold_ptr + statistics, mask=live, other=0.0)
    cut = tl.load(cut_ptr + statistics, mask=live, other=0).to(tl.int32)
    logsumexp = tl.load(logsumexp_ptr + statistics, mask=live, other=0.0)
    seed = tl.load(seeds_ptr + b, mask=live, other=0)
    iteration = tl.load(iteration_ptr + b, mask=live, other=0)
    if VERIFY:
        position = tl.load(position_ptr + b, mask=live, other=0) + w
    else:
        position = tl.load(position_ptr + row, mask=live, other=0)
    offset, uncond_offset = b * stride_b + w * stride_w, b * uncond_stride_b + w * uncond_stride_w

    mode = tl.where(live, FROZEN if RULE == RULE_GUMBEL else FRESH, KEEP)
    if VERIFY:
        flags = tl.load(flags_ptr + row, mask=live, other=0)
        forced = tl.load(forced_ptr + row, mask=live, other=0)
        draft = tl.load(drafts_ptr + row, mask=live, other=0)
        kept = (flags & ACCEPTED) != 0
        if RULE != RULE_GUMBEL:
            source = tl.load(q_row_ptr + row, mask=live, other=-1)
            uniform_log = tl.load(uniform_log_ptr + row, mask=live, other=0.0)
            if HAS_LAST:
                has_q = source != Q_NONE
            else:
                has_q = source < Q_NONE
            mode = tl.where(kept, KEEP, tl.where(has_q, RESIDUAL, FRESH))
            if RULE != RULE_COUPLED:
                # Slots after the first rejection; a forced slot is never a rejection.
                slot = tl.arange(0, W_PADDED)[None, :]
                before = live[:, None] & (slot < w[:, None])
                place = b[:, None] * W + slot
                accepted_before = (tl.load(flags_ptr + place, mask=before, other=ACCEPTED) & ACCEPTED) != 0
                forced_before = tl.load(forced_ptr + place, mask=before, other=0) >= 0
                tail = tl.max((before & ((accepted_before | forced_before) == 0)).to(tl.int32), axis=1) > 0
                if RULE == RULE_GUMBEL_TAIL:
                    mode = tl.where(tail, FROZEN, mode)
                    kept = kept & (tail == 0)
                elif RULE == RULE_KEEP_RATIO:
                    ratio_kept = (flags & RATIO_KEPT) != 0
                    mode = tl.where(tail, tl.where(ratio_kept, KEEP, FRESH), mode)
                    kept = tl.where(tail, ratio_kept, kept)
                else:
                    mode = tl.where(tail, FRESH, mode)
                    kept = kept & (tail == 0)
        mode = tl.where(live & (forced < 0), mode, KEEP)
    elif CANDIDATES > 0:
        flags = tl.load(flags_ptr + statistics, mask=live, other=0)

    draws = (mode == FRESH) | (mode == RESIDUAL)
    any_draws = tl.max(draws.to(tl.int32), axis=0) > 0
    any_residual = tl.max((mode == RESIDUAL).to(tl.int32), axis=0) > 0
    any_frozen = tl.max((mode == FROZEN).to(tl.int32), axis=0) > 0
    complete = False
    if CANDIDATES > 0:
        complete = tl.max(flags & COMPLETE, axis=0) > 0
    best = tl.where(live, float("-inf"), float("-inf"))
    best_id = (row * 0).to(tl.int32) + vocab
    first = split * PER_SPLIT
    end = tl.minimum(first + PER_SPLIT, BLOCKS)
    index = tl.arange(0, BLOCK)[None, :]
    if CANDIDATES > 0:
        if complete:
            if any_draws | any_frozen:
                for part in range(first * BLOCK // SPLIT, tl.cdiv(end * BLOCK, SPLIT)):
                    z, local = load_candidates(
                        candidates_ptr, logits_ptr, uncond_ptr, allowed_ptr, statistics, part, offset, uncond_offset, stride_v, uncond_stride_v,
                        scale, temperature, (BLOCKS * BLOCK + SPLIT - 1) // SPLIT, CANDIDATES, SPLIT, HAS_UNCOND, HAS_ALLOWED,
                    )  # fmt: skip
                    if RULE != RULE_GUMBEL:
                        if any_draws:
                            sums_ptr = masses_ptr + row * (2 * BLOCKS)
                            p = store_block_sums(sums_ptr, z, local, part, threshold, cut, logsumexp, SPLIT, BLOCK, BLOCKS)
                            if VERIFY:
                                if any_residual:
                                    store_residual_sums(
                                        sums_ptr + BLOCKS, p, local, part,
                                        last_ptr, last_uncond_ptr, allowed_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
                                        b, W, source, draft, uniform_log, scale, temperature,
                                        last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
                                        SPLIT, BLOCK, BLOCKS, HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
                                    )  # fmt: skip
                    if RULE == RULE_GUMBEL or RULE == RULE_GUMBEL_TAIL:
                        if any_frozen:
                            ids = tl.where(local >= 0, part * SPLIT + local, vocab)
                            noisy = noisy_candidates(z, ids, threshold, cut, logsumexp, seed, position)
                            best, best_id = _better(noisy, ids, best, best_id, vocab)
    if RULE != RULE_GUMBEL:
        if any_draws & (complete == 0):
            for block in range(first, end):
                ids = block * BLOCK + index
                wanted = draws[:, None] & (ids < vocab)
                z = scaled_logits(
                    logits_ptr, uncond_ptr, allowed_ptr,
                    offset[:, None] + ids.to(tl.int64) * stride_v, uncond_offset[:, None] + ids.to(tl.int64) * uncond_stride_v,
                    ids, wanted, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
                )  # fmt: skip
                p = probability(z, threshold[:, None], cut[:, None], logsumexp[:, None], ids)
                p = tl.where(wanted, p, 0.0)
                sum_ptr = masses_ptr + row * (2 * BLOCKS) + block
                tl.store(sum_ptr, tl.sum(p, axis=1), mask=draws)
                if VERIFY:
                    if any_residual:
                        rejected = mode == RESIDUAL
                        q = draft_probability(
                            last_ptr, last_uncond_ptr, allowed_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
                            ids + (row * 0).to(tl.int32)[:, None], wanted & rejected[:, None], b, W, source, draft, uniform_log, scale, temperature,
                            last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
                            HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
                        )  # fmt: skip
                        residual = tl.where(wanted, tl.maximum(p - q, 0.0), 0.0)
                        tl.store(sum_ptr + BLOCKS, tl.sum(residual, axis=1), mask=rejected)
    if RULE == RULE_GUMBEL or RULE == RULE_GUMBEL_TAIL:
        if any_frozen & (complete == 0):
            for block in range(first, end):
                # All four words of a Philox call serve four neighbouring ids.
                quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]
                words = philox(seed[:, None], quad, position[:, None], position[:, None] * 0, GUMBEL)
                for lane in tl.static_range(4):
                    ids = quad * 4 + lane
                    wanted = (mode == FROZEN)[:, None] & (ids < vocab)
                    z = scaled_logits(
                        logits_ptr, uncond_ptr, allowed_ptr,
                        offset[:, None] + ids.to(tl.int64) * stride_v, uncond_offset[:, None] + ids.to(tl.int64) * uncond_stride_v,
                        ids, wanted, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
                    )  # fmt: skip
                    possible = wanted & is_kept(z, threshold[:, None], cut[:, None], ids) & (z < float("inf"))
                    noisy = z - logsumexp[:, None] + gumbel_from_uniform(uniform_from_bits(words[lane]))
                    best, best_id = _better(tl.where(possible, noisy, float("-inf")), ids, best, best_id, vocab)
        if SPLITS > 1:
            if any_frozen:
                tl.store(best_value_ptr + row * SPLITS + split, best, mask=live)
                tl.store(best_id_ptr + row * SPLITS + split, best_id, mask=live)

    # What the programs of a row wrote is read by the one of them that arrives last.
    tl.debug_barrier()
    arrived = 0
    if SPLITS > 1:
        arrived = tl.atomic_add(counters_ptr + 1 + tl.program_id(0), 1)
    if arrived == SPLITS - 1:
        token = row * 0
        if VERIFY:
            token = draft
        if RULE != RULE_GUMBEL:
            if any_draws:
                words = philox(seed, row * 0, position, iteration, PURPOSE)
                uniform = uniform_from_bits(words[1 if VERIFY else 0])
                slots = tl.arange(0, BLOCKS_PADDED)[None, :]
                inside = draws[:, None] & (slots < BLOCKS)
                sums = tl.load(masses_ptr + row[:, None] * (2 * BLOCKS) + slots, mask=inside, other=0.0, cache_modifier=".cg")
                from_residual = mode == RESIDUAL
                if VERIFY:
                    if any_residual:
                        residual_sums = tl.load(
                            masses_ptr + row[:, None] * (2 * BLOCKS) + BLOCKS + slots,
                            mask=inside & from_residual[:, None], other=0.0, cache_modifier=".cg",
                        )  # fmt: skip
                        # p = q, the converged state: nothing is left over, and the draw is from p.
                        from_residual = from_residual & (tl.max(residual_sums, axis=1) > 0.0)
                        sums = tl.where(from_residual[:, None], residual_sums, sums)
                running = tl.cumsum(sums, axis=1)
                target = uniform * tl.sum(tl.where(slots == BLOCKS - 1, running, 0.0), axis=1)
                block = _first_above(sums, running, target, slots, BLOCKS)
                target = target - tl.sum(tl.where(slots == block[:, None] - 1, running, 0.0), axis=1)
                ids = block[:, None] * BLOCK + index
                wanted = draws[:, None] & (ids < vocab)
                z = scaled_logits(
                    logits_ptr, uncond_ptr, allowed_ptr,
                    offset[:, None] + ids.to(tl.int64) * stride_v, uncond_offset[:, None] + ids.to(tl.int64) * uncond_stride_v,
                    ids, wanted, scale[:, None], temperature[:, None], HAS_UNCOND, HAS_ALLOWED,
                )  # fmt: skip
                masses = probability(z, threshold[:, None], cut[:, None], logsumexp[:, None], ids)
                masses = tl.where(wanted, masses, 0.0)
                if VERIFY:
                    if any_residual:
                        q = draft_probability(
                            last_ptr, last_uncond_ptr, allowed_ptr, last_threshold_ptr, last_cut_ptr, last_logsumexp_ptr,
                            ids, wanted & from_residual[:, None], b, W, source, draft, uniform_log, scale, temperature,
                            last_stride_b, last_stride_w, last_stride_v, last_uncond_stride_b, last_uncond_stride_w, last_uncond_stride_v,
                            HAS_ALLOWED, HAS_LAST, HAS_LAST_UNCOND,
                        )  # fmt: skip
                        masses = tl.where(from_residual[:, None] & wanted, tl.maximum(masses - q, 0.0), masses)
                drawn = block * BLOCK + _first_above(masses, tl.cumsum(masses, axis=1), target, index, BLOCK)
                token = tl.where(draws, drawn.to(tl.int64), token)
        if RULE == RULE_GUMBEL or RULE == RULE_GUMBEL_TAIL:
            if SPLITS > 1:
                slots = tl.arange(0, SPLITS_PADDED)[None, :]
                inside = (mode == FROZEN)[:, None] & (slots < SPLITS)
                values = tl.load(best_value_ptr + row[:, None] * SPLITS + slots, mask=inside, other=float("-inf"), cache_modifier=".cg")
                best_ids = tl.load(best_id_ptr + row[:, None] * SPLITS + slots, mask=inside, other=0, cache_modifier=".cg")
                top = tl.max(values, axis=1)
                best_id = tl.min(tl.where(values == top[:, None], best_ids, vocab), axis=1)
            # Without any id that may be drawn the result is meaningless, but in range.
            token = tl.where(mode == FROZEN, tl.minimum(best_id, vocab - 1).to(tl.int64), token)
        token = tl.minimum(token, vocab - 1)
        if VERIFY:
            if RULE == RULE_GUMBEL:
                kept = token == draft
            token = tl.where(forced >= 0, forced, token)
            kept = tl.where(forced >= 0, draft == forced, kept)
            tl.store(kept_ptr + row, kept, mask=live)
        tl.store(tokens_ptr + row, token, mask=live)
        if VERIFY:
            tl.debug_barrier()
            finished = tl.atomic_add(counters_ptr, 1)
            if finished == tl.num_programs(0) - 1:
                _count_commits(
                    tokens_ptr, kept_ptr, clean_ptr, forced_ptr, flags_ptr, remaining_ptr, committed_ptr, invalid_ptr, batch, W, end_id,
                    BATCH_ROWS, W_PADDED, RULE,
                )  # fmt: skip
