"""One iteration of the decode loop. Every method runs through it: forward, update, commit, advance, cache.

    inputs   c_last, x_1 … x_{W−1}           (c_last: the newest committed token)
    forward  p_1 … p_W
    update   x'_j by the preset's rule        (verify)
    commit   x'_1 … x'_a                      (a: from verify, at least 1)
    advance  drafts shift left by a, fresh slots enter on the right, p_j becomes the q of x'_j
    cache    the first a columns of this forward become valid, the others are written over next time

With denoising (SJD2) the slots behind a clean front are fed as noisy embeddings, which only their right neighbours see; see ``sjd2.denoising``.

State is a handful of device tensors, and an iteration decides nothing on the host; ``run.py`` does, now and then. Rows never wait for
each other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from sjd2_kernels import LastForward, Verification, verify

from ..cache import RaggedCache
from .initialisation import fresh_drafts
from .parts import part
from .state import Plan, WindowState, per_model_row, slots

__all__ = ["iterate"]


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
    with part("cache"):
        cache.commit(per_model_row(count, plan))


def iterate(plan: Plan, state: WindowState, cache: RaggedCache, stopwatch: AbstractContextManager) -> None:
    """One iteration of the module's scheme."""
    with stopwatch, part("forward"):
        logits, logits_uncond = _forward(plan, state, cache)
    if plan.rules is not None:
        logits, logits_uncond = plan.rules.targets(logits, logits_uncond, state)
    drafts, forced = plan.image_ids(state.drafts), plan.image_ids(state.forced)
    with part("verify"):
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
