"""Launchers of the logit kernels: the calls, with scratch that is allocated for each (``plans.py`` says how much)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..processing import LogitsProcessing, RowStatistics
from ..random import Purpose
from ..verify.records import LastForward, Rule
from .draw import draw_kernel
from .logits import launch_options
from .plans import ALIGN, DrawPlan, draw_plan, first_guess, next_power, rows_per_program, statistics_plan
from .statistics import row_statistics_kernel, split_merge_kernel, split_sweep_kernel

__all__ = ["sample_fused", "verify_fused"]

_RULES = {Rule.FRESH: 0, Rule.COUPLED: 1, Rule.GUMBEL_TAIL: 2, Rule.GUMBEL: 3, Rule.KEEP_RATIO: 4}


def _allocate(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}


@dataclass(frozen=True)
class _Inputs:
    """What the kernels share, by argument name; an absent tensor is replaced by one that no kernel reads."""

    pointers: dict[str, torch.Tensor]
    strides: dict[str, int]
    flags: dict[str, bool]
    last_pointers: dict[str, torch.Tensor]
    last_strides: dict[str, int]
    last_flags: dict[str, bool]


def _strides(prefix: str, tensor: torch.Tensor | None, window: int) -> dict[str, int]:
    b, w, v = (0, 0, 0) if tensor is None else tensor.stride()
    if tensor is not None and tensor.shape[1] < window:  # one row of logits serves all slots
        w = 0
    return {f"{prefix}stride_b": b, f"{prefix}stride_w": w, f"{prefix}stride_v": v}


def _inputs(logits: torch.Tensor, uncond: torch.Tensor | None, processing: LogitsProcessing, last: LastForward | None, window: int) -> _Inputs:
    last_uncond = None if last is None else last.logits_uncond
    statistics = {} if last is None else last.statistics._asdict()

    def contiguous(name: str, dtype: torch.dtype) -> torch.Tensor:
        return statistics[name].to(dtype).contiguous() if last is not None else logits

    return _Inputs(
        pointers={
            "logits_ptr": logits,
            "uncond_ptr": logits if uncond is None else uncond,
            "allowed_ptr": logits if processing.allowed is None else processing.allowed.contiguous(),
            "guidance_ptr": processing.guidance_scale.contiguous(),
            "temperature_ptr": processing.temperature.contiguous(),
        },
        strides=_strides("", logits, window) | _strides("uncond_", uncond, window),
        flags={"HAS_UNCOND": uncond is not None, "HAS_ALLOWED": processing.allowed is not None},
        last_pointers={
            "last_ptr": logits if last is None else last.logits,
            "last_uncond_ptr": logits if last_uncond is None else last_uncond,
            "last_threshold_ptr": contiguous("threshold", torch.float32),
            "last_cut_ptr": contiguous("cut", torch.int64),
            "last_logsumexp_ptr": contiguous("logsumexp", torch.float32),
        },
        last_strides=_strides("last_", None if last is None else last.logits, window) | _strides("last_uncond_", last_uncond, window),
        last_flags={"HAS_LAST": last is not None, "HAS_LAST_UNCOND": last_uncond is not None},
    )


def _statistics(
    inputs: _Inputs,
    processing: LogitsProcessing,
    shape: tuple[int, int, int],
    *,
    counters: torch.Tensor,
    flags: torch.Tensor,
    accept: dict[str, torch.Tensor] | None,
    log_keep_ratio: float,
) -> tuple[RowStatistics, torch.Tensor | None]:
    """One launch for rows that fit a program, two for longer ones, which leave candidates; with ``accept`` the drafts are judged on the way.

    ``flags`` (int32, one per row) says of a row what a draw must know of it; without ``accept`` only of rows with candidates.
    """
    batch, window, vocab = shape
    rows = batch * window
    device = counters.device
    result = RowStatistics(
        torch.empty(batch, window, dtype=torch.float32, device=device),
        torch.empty(batch, window, dtype=torch.int64, device=device),
        torch.empty(batch, window, dtype=torch.float32, device=device),
    )
    top_k, top_p = processing.max_top_k > 0, processing.uses_top_p
    plan = statistics_plan(rows, vocab, 0 if top_p else processing.max_top_k)
    judged = accept or dict.fromkeys(("drafts_ptr", "q_row_ptr", "seeds_ptr", "iteration_ptr", "position_ptr", "uniform_log_ptr"), counters)
    common = {
        **inputs.pointers,
        "top_k_ptr": processing.top_k.contiguous(),
        "top_p_ptr": processing.top_p.contiguous(),
        **inputs.last_pointers,
        **judged,
        "flags_ptr": flags,
        "threshold_ptr": result.threshold,
        "cut_ptr": result.cut,
        "logsumexp_ptr": result.logsumexp,
        "counters_ptr": counters,
        "counters": len(counters),
        "rows": rows,
        "W": window,
        "vocab": vocab,
        "log_keep_ratio": log_keep_ratio,
        **inputs.strides,
        **inputs.last_strides,
        "TOP_K": top_k,
        "TOP_P": top_p,
        "ACCEPT": accept is not None,
        **inputs.flags,
        **inputs.last_flags,
    }
    if plan.splits == 1:
        row_statistics_kernel[(-(-rows // plan.rows),)](**common, ROWS=plan.rows, BLOCK_V=plan.block, **launch_options(plan.warps))
        return result, None
    parts = _allocate(plan.scratch(rows, top_k or top_p), device)
    align = math.gcd(ALIGN, vocab, *(stride for name, stride in inputs.strides.items() if not name.endswith("_v")))
    split_sweep_kernel[(rows, plan.splits)](
        **inputs.pointers,
        top_k_ptr=common["top_k_ptr"],
        **parts,
        W=window,
        vocab=vocab,
        **inputs.strides,
        SPLITS=plan.splits,
        BLOCK_V=plan.block,
        PER_SPLIT=plan.per_split,
        FIRST_GUESS=first_guess(plan.per_split, plan.block),
        SEARCH=top_k or top_p,
        ALIGN=align,
        **inputs.flags,
        # Of an NVIDIA processor's 65,536 registers, so that five programs, or four, wait for memory at once.
        **launch_options(plan.warps, 96 if align == ALIGN else 128),
    )
    padded = next_power(plan.splits)
    split_merge_kernel[(rows,)](
        **common,
        **parts,
        SPLITS=plan.splits,
        SPLITS_PADDED=padded,
        BLOCK_V=plan.block,
        ID_BITS=vocab.bit_length(),
        PER_SPLIT=plan.per_split,
        **launch_options(8),
    )
    return result, parts["candidates_ptr"] if top_k or top_p else None


def verify_fused(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    rule: Rule,
    drafts: torch.Tensor,
    q_row: torch.Tensor,
    last: LastForward | None,
    clean: torch.Tensor,
    forced: torch.Tensor,
    remaining: torch.Tensor,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    log_keep_ratio: float,
    end_id: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, RowStatistics, torch.Tensor]:
    """See :func:`sjd2_kernels.verify`: two launches for V up to ``SINGLE``, three above."""
    batch, window, vocab = logits.shape
    rows, device = batch * window, logits.device
    plan = draw_plan(rows, vocab)
    inputs = _inputs(logits, logits_uncond, processing, last, window)
    counters = torch.empty(1 + (rows if plan.splits > 1 else 0), dtype=torch.int32, device=device)
    slots = {
        "drafts_ptr": drafts.contiguous(),
        "q_row_ptr": q_row.contiguous(),
        "uniform_log_ptr": torch.empty(rows, dtype=torch.float32, device=device),
        "seeds_ptr": seeds.contiguous(),
        "iteration_ptr": iteration.contiguous(),
        "position_ptr": position.contiguous(),
    }
    flags = torch.empty(rows, dtype=torch.int32, device=device)
    tokens = torch.empty(batch, window, dtype=torch.int64, device=device)
    kept = torch.empty(batch, window, dtype=torch.bool, device=device)
    committed = torch.empty(batch, dtype=torch.int64, device=device)
    invalid = torch.empty(batch, dtype=torch.bool, device=device)
    if rows == 0:
        statistics = RowStatistics(*(torch.empty(batch, window, dtype=dtype, device=device) for dtype in (torch.float32, torch.int64, torch.float32)))
        return tokens, kept, committed.zero_(), statistics, invalid.zero_()
    with torch.cuda.device_of(logits):
        statistics, candidates = _statistics(
            inputs, processing, (batch, window, vocab), counters=counters, flags=flags, accept=slots, log_keep_ratio=log_keep_ratio
        )  # fmt: skip
        scratch = _allocate(plan.scratch(rows, rule is not Rule.GUMBEL, rule in (Rule.GUMBEL, Rule.GUMBEL_TAIL)), device)
        padded_window = next_power(window)
        draw_kernel[(-(-rows // plan.rows), plan.splits)](
            **inputs.pointers,
            **inputs.last_pointers,
            **_statistics_arguments(statistics, window),
            **slots,
            flags_ptr=flags,
            forced_ptr=forced.contiguous(),
            clean_ptr=clean.contiguous(),
            remaining_ptr=remaining.contiguous(),
            **scratch,
            counters_ptr=counters,
            tokens_ptr=tokens,
            kept_ptr=kept,
            committed_ptr=committed,
            invalid_ptr=invalid,
            batch=batch,
            W=window,
            vocab=vocab,
            end_id=end_id,
            **inputs.strides,
            **inputs.last_strides,
            **_draw_constants(plan, candidates, statistics_plan(rows, vocab).block),
            candidates_ptr=counters if candidates is None else candidates,
            BATCH_ROWS=rows_per_program(padded_window, batch),
            W_PADDED=padded_window,
            VERIFY=True,
            RULE=_RULES[rule],
            PURPOSE=int(Purpose.VERIFY),
            **inputs.flags,
            **inputs.last_flags,
            **_draw_options(candidates),
        )
    return tokens, kept, committed, statistics, invalid


def _statistics_arguments(statistics: RowStatistics, window: int) -> dict[str, torch.Tensor | int]:
    return {
        "threshold_ptr": statistics.threshold,
        "cut_ptr": statistics.cut,
        "logsumexp_ptr": statistics.logsumexp,
        "stride_statistics_b": statistics.threshold.shape[1],
        "stride_statistics_w": int(statistics.threshold.shape[1] == window),
    }


def _draw_options(candidates: torch.Tensor | None) -> dict[str, int | bool]:
    return launch_options(8 if candidates is not None and candidates.shape[-1] > 1024 else 4)


def _draw_constants(plan: DrawPlan, candidates: torch.Tensor | None, split: int) -> dict[str, int]:
    return {
        "CANDIDATES": 0 if candidates is None else candidates.shape[-1],
        "SPLIT": split,
        "ROWS": plan.rows,
        "BLOCK": plan.block,
        "BLOCKS": plan.blocks,
        "BLOCKS_PADDED": max(16, next_power(plan.blocks)),  # Triton 3.6 cannot scan fewer elements than a thread loads
        "PER_SPLIT": plan.per_split,
        "SPLITS": plan.splits,
        "SPLITS_PADDED": next_power(plan.splits),
    }


def sample_fused(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    purpose: Purpose,
) -> torch.Tensor:
    """See :func:`sjd2_kernels.sample`: the statistics of every row of logits, once, and a draw for every slot."""
    batch, given, vocab = logits.shape
    window = position.shape[1]
    rows, device = batch * window, logits.device
    plan = draw_plan(rows, vocab)
    inputs = _inputs(logits, logits_uncond, processing, None, window)
    counters = torch.empty(1 + (rows if plan.splits > 1 else 0), dtype=torch.int32, device=device)
    flags = torch.empty(batch * given, dtype=torch.int32, device=device)
    tokens = torch.empty(batch, window, dtype=torch.int64, device=device)
    if rows == 0:
        return tokens
    frozen = purpose is Purpose.GUMBEL
    with torch.cuda.device_of(logits):
        statistics, candidates = _statistics(
            inputs, processing, (batch, given, vocab), counters=counters, flags=flags, accept=None, log_keep_ratio=0.0
        )  # fmt: skip
        scratch = _allocate(plan.scratch(rows, not frozen, frozen), device)
        unused = dict.fromkeys(
            ("uniform_log_ptr", "drafts_ptr", "q_row_ptr", "forced_ptr", "clean_ptr", "remaining_ptr", "kept_ptr", "committed_ptr", "invalid_ptr"),
            tokens,
        )
        draw_kernel[(-(-rows // plan.rows), plan.splits)](
            **inputs.pointers,
            **inputs.last_pointers,
            **_statistics_arguments(statistics, window),
            **unused,
            flags_ptr=flags,
            seeds_ptr=seeds.contiguous(),
            iteration_ptr=iteration.contiguous(),
            position_ptr=position.contiguous(),
            **scratch,
            counters_ptr=counters,
            tokens_ptr=tokens,
            batch=batch,
            W=window,
            vocab=vocab,
            end_id=-1,
            **inputs.strides,
            **inputs.last_strides,
            **_draw_constants(plan, candidates, statistics_plan(rows, vocab).block),
            candidates_ptr=counters if candidates is None else candidates,
            BATCH_ROWS=1,
            W_PADDED=1,
            VERIFY=False,
            RULE=_RULES[Rule.GUMBEL] if frozen else _RULES[Rule.FRESH],
            PURPOSE=int(purpose),
            **inputs.flags,
            **inputs.last_flags,
            **_draw_options(candidates),
        )
    return tokens
