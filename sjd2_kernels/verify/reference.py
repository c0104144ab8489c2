"""The definition of ``verify`` in PyTorch: the ground truth that every other back-end is tested against.

It materialises p and q, ``[B, W, V]`` each, and runs in float64 when the logits are float64. Nothing in it looks at a value
on the host.
"""

from __future__ import annotations

import torch

from ..processing import LogitsProcessing, log_probabilities, row_statistics, scaled_logits
from ..random import Purpose, gumbel_noise, uniforms
from ..sampling.inverse_cdf import inverse_cdf
from .records import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, Rule, Verification

__all__ = ["verify_reference"]


def _gather_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``values[b, rows[b, j]]`` for ``values [B, W, ...]`` and ``rows [B, W]``."""
    return values[torch.arange(len(rows), device=rows.device)[:, None], rows]


def _draft_distribution(
    q_row: torch.Tensor, drafts: torch.Tensor, last: LastForward | None, processing: LogitsProcessing, like: torch.Tensor
) -> torch.Tensor:
    """Log of q, ``[B, W, V]``, rebuilt from where each draft came from; all zeros (never used) where there is none."""
    vocab = like.shape[-1]
    log_q = torch.zeros_like(like)
    if last is not None:
        rows = q_row.clamp(min=0)
        logits = _gather_rows(last.logits, rows)
        uncond = None if last.logits_uncond is None else _gather_rows(last.logits_uncond, rows)
        statistics = type(last.statistics)(*(_gather_rows(value, rows) for value in last.statistics))
        log_q = log_probabilities(scaled_logits(logits, uncond, processing), statistics)
    uniform = like.new_zeros(vocab)
    if processing.allowed is not None:
        uniform = uniform.masked_fill(~processing.allowed, -torch.inf)
    uniform = uniform.log_softmax(-1)
    point = torch.full_like(like, -torch.inf).scatter(-1, drafts[..., None], 0.0)
    source = q_row[..., None]
    log_q = torch.where(source == Q_UNIFORM, uniform, log_q)
    return torch.where(source == Q_POINT, point, log_q)


def _residual(p: torch.Tensor, log_q: torch.Tensor, has_q: torch.Tensor) -> torch.Tensor:
    """Masses of ``max(0, p − q)``; p itself where that has no mass (p = q, the converged state) or where there is no q."""
    masses = (p - log_q.exp()).clamp(min=0)
    usable = has_q & (masses.sum(-1) > 0)
    return torch.where(usable[..., None], masses, p)


def _commit_count(kept: torch.Tensor, clean: torch.Tensor, tokens: torch.Tensor, remaining: torch.Tensor, end_id: int) -> torch.Tensor:
    """One more than the leading slots that were kept and fed clean; at most what remains; nothing after an end id."""
    window = tokens.shape[1]
    # The last draft was not fed to the model, so it cannot vouch for a token after it.
    run = (kept & clean)[:, : window - 1].long().cumprod(1).sum(1)
    count = torch.minimum(1 + run, remaining)
    if end_id >= 0:
        ended = tokens == end_id
        first_end = torch.where(ended.any(1), ended.long().argmax(1) + 1, window)
        count = torch.minimum(count, first_end)
    return count


def verify_reference(
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
) -> Verification:
    """See :func:`sjd2_kernels.verify`; ``log_keep_ratio`` is log τ."""
    vocab = logits.shape[-1]
    z = scaled_logits(logits, logits_uncond, processing)
    statistics = row_statistics(z, processing)
    log_p = log_probabilities(z, statistics)
    positions = position[:, None] + torch.arange(drafts.shape[1], device=drafts.device)
    is_forced = forced >= 0

    def frozen_draw() -> torch.Tensor:
        return (log_p + gumbel_noise(seeds, positions, vocab, dtype=log_p.dtype)).argmax(-1)

    if rule is Rule.GUMBEL:
        tokens = frozen_draw()
        kept = tokens == drafts
    else:
        p, log_q = log_p.exp(), _draft_distribution(q_row, drafts, last, processing, log_p)
        accept_uniform, draw_uniform = uniforms(seeds, Purpose.VERIFY, iteration, positions, dtype=log_p.dtype)[..., :2].unbind(-1)
        log_p_draft, log_q_draft = (value.gather(-1, drafts[..., None]).squeeze(-1) for value in (log_p, log_q))
        has_q = (q_row != Q_NONE) if last is not None else (q_row < Q_NONE)
        accepted = has_q & (accept_uniform.log() + log_q_draft < log_p_draft)
        # Slots after the first rejection; a forced slot is never a rejection.
        rejected = (~(accepted | is_forced)).long()
        tail = (rejected.cumsum(1) - rejected) > 0
        resampled = inverse_cdf(_residual(p, log_q, has_q), draw_uniform)
        tokens, kept = torch.where(accepted, drafts, resampled), accepted
        if rule is not Rule.COUPLED:
            if rule is Rule.GUMBEL_TAIL:
                tail_tokens, tail_kept = frozen_draw(), torch.zeros_like(kept)
            else:
                fresh = inverse_cdf(p, draw_uniform)
                tail_kept = torch.zeros_like(kept)
                if rule is Rule.KEEP_RATIO:
                    tail_kept = has_q & (log_p_draft - log_q_draft > log_keep_ratio)
                tail_tokens = torch.where(tail_kept, drafts, fresh)
            tokens, kept = torch.where(tail, tail_tokens, tokens), torch.where(tail, tail_kept, kept)
    # A structural slot is known, whatever the logits say. It vouches for what follows only if the known id is what was fed.
    tokens = torch.where(is_forced, forced, tokens)
    kept = torch.where(is_forced, drafts == forced, kept)
    committed = _commit_count(kept, clean, tokens, remaining, end_id)
    # amax carries NaN and +inf along and is −inf for a fully masked row.
    invalid = (~z.amax(-1).isfinite() & ~is_forced).any(1) & (remaining > 0)
    return Verification(tokens, kept, committed, statistics, invalid)
