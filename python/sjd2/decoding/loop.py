"""The decode loop. Every method runs through it: forward, update, commit, advance, cache.

    inputs   c_last, x_1 … x_{W−1}           (c_last: the newest committed token)
    forward  p_1 … p_W
    update   x'_j by the preset's rule        (verify)
    commit   x'_1 … x'_a                      (a: from verify, at least 1)
    advance  drafts shift left by a, fresh slots enter on the right, p_j becomes the q of x'_j
    cache    the first a columns of this forward become valid, the others are written over next time

With denoising (SJD2) the slots behind a clean front are fed as noisy embeddings, which only their right neighbours see; see ``sjd2.denoising``.

State is a handful of device tensors; one iteration decides nothing on the host, which only looks now and then whether all rows
are done, and then lets finished rows leave. Rows never wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from sjd2_kernels import LastForward, LogitsProcessing, Verification, verify

from ..cache import RaggedCache, resolve_cache
from ..denoising.window import Denoiser
from .compaction import Ledger
from .compaction import compact as compact_rows
from .initialisation import fresh_drafts
from .layout import TokenLayout
from .model import DecodableModel, Prompt
from .presets import Preset
from .rules import Rules
from .state import Plan, WindowState, begin, per_model_row, slots
from .statistics import Progress, RowReport, Stopwatch

__all__ = ["DecodeResult", "decode"]


@dataclass(frozen=True)
class DecodeResult:
    """``tokens`` int64 ``[B, N]`` in slice ids (0 past a row's end), and a report per row."""

    tokens: torch.Tensor
    rows: list[RowReport]


def _forward(plan: Plan, state: WindowState, cache: RaggedCache) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Conditional and unconditional logits ``[B, W, V]`` of the window; the last draft is predicted, not fed."""
    if plan.denoiser is None or state.noise is None:
        inputs = plan.model.embed(state.drafts[:, :-1])
    else:
        inputs, levels = plan.denoiser.inputs(state.noise), plan.denoiser.input_levels(state.noise)
        cache.levels = None if levels is None else per_model_row(levels, plan)
    logits = plan.model.forward(torch.cat([state.tail, per_model_row(inputs, plan)], dim=1), cache)[:, : plan.preset.window]
    if not plan.guided:
        return logits, None
    batch = len(state.drafts)
    return logits[:batch], logits[batch:]


def _advance(plan: Plan, state: WindowState, cache: RaggedCache, last: LastForward, result: Verification) -> None:
    """Commit what ``verify`` found final, shift the window over it, and let fresh drafts in on the right."""
    window, layout = plan.preset.window, plan.layout
    count, start = result.committed, state.committed
    slot = torch.arange(window, device=count.device)
    newly = slot < count[:, None]
    # The last draft was not fed: whether it survives saves nothing.
    state.accepted = state.accepted + (newly & result.kept & (state.forced < 0) & (slot < window - 1)).sum(1)
    state.tokens.scatter_(1, slots(start, window), torch.where(newly, result.tokens, 0))
    state.committed = start + count
    ended = (newly & (result.tokens == layout.end_id)).any(1)
    state.remaining = torch.where(ended, 0, state.remaining - count)
    state.invalid = state.invalid | result.invalid

    source = slot + count[:, None]
    survives = source < window
    source = source.clamp(max=window - 1)
    positions = slots(state.committed, window)
    state.forced = layout.forced_at(positions)
    drafts, q_row = fresh_drafts(
        plan.preset.initialisation,
        last=last,
        processing=plan.processing,
        updated=result.tokens,
        structural=plan.structural,
        tokens=state.tokens,
        start=start,
        positions=positions,
        row_stride=layout.row_stride,
        seeds=plan.seeds,
        iteration=state.iteration,
    )
    drafts = torch.where(survives, result.tokens.gather(1, source), drafts)
    state.drafts = torch.where(state.forced >= 0, state.forced, drafts)
    if plan.denoiser is not None and state.noise is not None:
        state.noise, state.drafts = plan.denoiser.step(state.noise, state.drafts, count, state.forced, plan.seeds, state.committed)
    state.q_row = torch.where(survives, source, q_row)
    state.last = last
    state.iteration = state.iteration + (count > 0)

    newest = result.tokens.gather(1, (count - 1).clamp(min=0)[:, None])
    state.tail = per_model_row(plan.model.embed(newest), plan)
    cache.commit(per_model_row(count, plan))


def _iterate(plan: Plan, state: WindowState, cache: RaggedCache, stopwatch: Stopwatch) -> None:
    """One iteration of the module's scheme."""
    with stopwatch:
        logits, logits_uncond = _forward(plan, state, cache)
    if plan.rules is not None:
        logits, logits_uncond = plan.rules.targets(logits, logits_uncond, state)
    drafts, forced = plan.image_ids(state.drafts), plan.image_ids(state.forced)
    result = verify(
        logits,
        logits_uncond,
        plan.processing,
        rule=plan.preset.rule,
        drafts=drafts,
        q_row=state.q_row,
        last=state.last,
        clean=torch.ones_like(state.drafts, dtype=torch.bool) if state.noise is None else state.noise.levels == 0,
        forced=forced,
        remaining=state.remaining,
        seeds=plan.seeds,
        iteration=state.iteration,
        position=state.committed,
        keep_ratio=plan.preset.keep_ratio,
        end_id=plan.layout.end_id,
    )
    if plan.structural:
        result = result._replace(tokens=torch.where(state.forced >= 0, state.forced, result.tokens))
    _advance(plan, state, cache, LastForward(logits, logits_uncond, result.statistics), result)
    if plan.rules is not None:
        state.remaining = state.remaining.masked_fill(plan.rules.stopped(state), 0)


def _iterations(limit: int, poll_every: int) -> Iterator[tuple[int, bool]]:
    """Iteration numbers from 1, each with whether the host looks at the state after it."""
    for iteration in range(1, limit + 1):
        yield iteration, iteration % poll_every == 0 or iteration == limit


def _look(state: WindowState, cache: RaggedCache, ledger: Ledger, iteration: int) -> list[int]:
    """Tokens still to come per row; waits for the device.

    Raises:
        FloatingPointError: logits that nothing can be drawn from.
        RuntimeError: a row outgrew the cache.
    """
    no_room = cache.overflow.view(-1, len(state.remaining)).any(0)
    remaining, invalid, full = torch.stack([state.remaining, state.invalid.long(), no_room.long()]).tolist()
    if any(full):
        raise RuntimeError(f"cache: expected room for every row's window, got none for row {ledger.rows[full.index(1)]} by iteration {iteration}")
    if any(invalid):
        raise FloatingPointError(
            f"logits: expected finite values and at least one id that may be drawn, got NaN, +inf or a fully masked "
            f"distribution in row {ledger.rows[invalid.index(1)]} within iteration {iteration}"
        )
    return remaining


def _run(plan: Plan, prompt: Prompt, callback: Callable[[Progress], None] | None, poll_every: int) -> DecodeResult:
    """Iterate until every row is finished."""
    batch, count = plan.layout.forced.shape
    totals = plan.layout.lengths
    started = time.perf_counter()
    stopwatch = Stopwatch(plan.seeds.device)
    finished_at: dict[int, tuple[float, float]] = {}
    state, cache = begin(plan, prompt, stopwatch)
    ledger = Ledger(batch)
    for iteration, look in _iterations(count, poll_every):
        _iterate(plan, state, cache, stopwatch)
        if callback is not None:
            rows = ledger.outcome(state)
            callback(Progress(iteration, rows.committed, totals, rows.tokens[:, :count], rows.drafts, rows.levels))
        if look:
            remaining = _look(state, cache, ledger, iteration)
            now = time.perf_counter() - started, stopwatch.seconds()
            for row, left in zip(ledger.rows, remaining, strict=True):
                if left == 0:
                    finished_at.setdefault(row, now)
            if len(finished_at) == batch:
                break
            if plan.compact:
                plan, state = compact_rows(plan, state, cache, ledger, remaining)
    rows = ledger.outcome(state)
    tokens, forwards, accepted = torch.stack([rows.committed, rows.iteration, rows.accepted]).tolist()
    return DecodeResult(
        tokens=rows.tokens[:, :count],
        rows=[RowReport(tokens[row], forwards[row], accepted[row], *finished_at[row]) for row in range(batch)],
    )


def decode(
    model: DecodableModel,
    prompt: Prompt,
    layout: TokenLayout,
    processing: LogitsProcessing,
    preset: Preset,
    seeds: torch.Tensor,
    *,
    callback: Callable[[Progress], None] | None = None,
    poll_every: int | None = None,
    cache: str = "ragged",
    compact: bool = True,
    rules: Rules | None = None,
) -> DecodeResult:
    """Decode the image tokens of B rows.

    Args:
        model: what the adapter made of a Hugging Face model.
        prompt: B model rows, or 2B with guidance.
        layout: of the B token sequences.
        processing: sampling parameters of the B rows.
        preset: the method.
        seeds: int64 ``[B]``: with the method's settings and the row's own prompt a seed determines the row's tokens.
        callback: called after every iteration with the :class:`Progress`.
        poll_every: iterations between two looks of the host (default 1 on a CPU, 8 elsewhere).
        cache: ``ragged`` or ``paged``; see ``sjd2.cache``. The tokens are the same.
        compact: let finished rows leave the batch where the host looks. The tokens are the same.
        rules: what else decides what is drawn and where rows end.

    Raises:
        ValueError: shapes that do not fit each other, guidance without unconditional rows, ``poll_every`` below 1, an unknown cache.
        FloatingPointError: a row's logits held NaN or +inf, or no id that may be drawn.
        RuntimeError: the cache had no room for a row's window (its adapter made it too small).
    """
    batch, count = layout.forced.shape
    rows = len(prompt.embeds)
    if rows not in (batch, 2 * batch):
        raise ValueError(f"prompt: expected {batch} rows, or {2 * batch} with guidance, got {rows}")
    if seeds.shape != (batch,):
        raise ValueError(f"seeds: expected shape ({batch},), got {tuple(seeds.shape)}")
    if int(layout.lengths.max()) > count:
        raise ValueError(f"layout.lengths: expected at most {count} (the width of layout.forced), got {int(layout.lengths.max())}")
    if rows == batch and processing.uses_guidance:
        raise ValueError(f"prompt: guidance needs {2 * batch} rows, conditional and unconditional, got {rows}")
    if poll_every is None:
        poll_every = 1 if seeds.device.type == "cpu" else 8
    elif poll_every < 1:
        raise ValueError(f"poll_every: expected a whole number >= 1, got {poll_every}")
    structural = bool((layout.forced >= model.vocab_size).any())
    plan = Plan(
        model,
        layout,
        processing,
        preset,
        seeds,
        guided=rows == 2 * batch,
        structural=structural,
        cache=resolve_cache(cache),
        compact=compact and not (rules is not None and rules.numbered),
        rules=rules,
    )
    with torch.inference_mode():
        if preset.denoising is not None:
            plan = replace(plan, denoiser=Denoiser(preset.denoising, preset.window, model, seeds.device, structural=structural))
        result = _run(plan, prompt, callback, poll_every)
    # A copy made out here is an ordinary tensor that the caller may write to.
    return DecodeResult(result.tokens.clone(), result.rows)
