"""How close every decision of ``verify`` and ``sample`` came to going the other way, in float64.

Two back-ends add in different orders and have different exponentials, so they may part where a decision hangs on the last bits. A test may
excuse a difference only where the margin computed here, from the float32 scaled logits that both share, is below :data:`TOLERANCE`.
"""

from __future__ import annotations

import math

import torch

from sjd2_kernels import Q_NONE, LastForward, LogitsProcessing, Purpose, Rule
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from sjd2_kernels.random import gumbel_noise, uniforms
from sjd2_kernels.verify.reference import _draft_distribution

#: Probability (or log-probability) below which a margin is rounding: float32 sums and exponentials are good to about 1e-6.
TOLERANCE = 1e-5


def _float32_as_float64(logits, uncond, processing):
    return scaled_logits(logits, uncond, processing).double()


def _draw_margin(masses: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    running = masses.cumsum(-1)
    return (running - uniform[..., None] * running[..., -1:]).abs().amin(-1)


def _frozen_margin(log_p: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    if log_p.shape[-1] == 1:
        return log_p.new_full(log_p.shape[:-1], math.inf)
    best = (log_p + noise).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def nucleus_margin(z: torch.Tensor, processing: LogitsProcessing) -> torch.Tensor:
    """Distance of the nucleus' mass from ``top_p``, ``[B, W]``; infinite where there is no top-p."""
    without = LogitsProcessing(**{**vars(processing), "top_p": torch.ones_like(processing.top_p), "uses_top_p": False})
    p = log_probabilities(z, row_statistics(z, without)).exp()
    running = p.sort(dim=-1, descending=True).values.cumsum(-1)
    margin = (running - processing.top_p.double()[:, None, None]).abs().amin(-1)
    return torch.where(processing.top_p[:, None] < 1, margin, math.inf)


def sample_margin(logits, uncond, processing, *, seeds, iteration, position, purpose) -> torch.Tensor:
    """``[B, W]`` smallest margin of each draw."""
    z = _float32_as_float64(logits, uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing))
    if purpose is Purpose.GUMBEL:
        margin = _frozen_margin(log_p, gumbel_noise(seeds, position, z.shape[-1], dtype=z.dtype))
    else:
        margin = _draw_margin(log_p.exp(), uniforms(seeds, purpose, iteration, position, dtype=z.dtype)[..., 0])
    return torch.minimum(margin, nucleus_margin(z, processing))


def verify_margin(logits, uncond, processing, *, rule, drafts, q_row, last, seeds, iteration, position, keep_ratio=0.3, **_: object) -> torch.Tensor:
    """``[B, W]`` smallest margin of what decides each slot, the acceptance of the slots before it included."""
    z = _float32_as_float64(logits, uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing))
    positions = position[:, None] + torch.arange(drafts.shape[1], device=drafts.device)
    margin = nucleus_margin(z, processing)
    if rule in (Rule.GUMBEL, Rule.GUMBEL_TAIL):
        margin = torch.minimum(margin, _frozen_margin(log_p, gumbel_noise(seeds, positions, z.shape[-1], dtype=z.dtype)))
    if rule is Rule.GUMBEL:
        return margin
    if last is not None:
        double = type(last.statistics)(last.statistics.threshold.double(), last.statistics.cut, last.statistics.logsumexp.double())
        last = LastForward(_float32_as_float64(last.logits, last.logits_uncond, processing), None, double)
    plain = LogitsProcessing(
        **{**vars(processing), "temperature": torch.ones_like(processing.temperature), "uses_guidance": False}
    )  # the last logits are scaled already
    log_q = _draft_distribution(q_row, drafts, last, plain, log_p)
    accept, draw = uniforms(seeds, Purpose.VERIFY, iteration, positions, dtype=z.dtype)[..., :2].unbind(-1)
    ratio = (log_p - log_q).gather(-1, drafts[..., None]).squeeze(-1)
    has_q = (q_row != Q_NONE) if last is not None else (q_row < Q_NONE)
    decision = (accept.log() - ratio).abs()
    if rule is Rule.KEEP_RATIO and keep_ratio > 0:
        decision = torch.minimum(decision, (ratio - math.log(keep_ratio)).abs())
    # NaN: both probabilities are 0, and the draft is rejected whatever rounds how.
    decision = torch.where(has_q, decision, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
    residual = (log_p.exp() - log_q.exp()).clamp(min=0)
    # A residual that is all rounding (p = q up to the last bits) is drawn from by one back-end and not by another.
    margin = torch.minimum(margin, torch.where(has_q, torch.minimum(_draw_margin(residual, draw), residual.sum(-1)), math.inf))
    margin = torch.minimum(margin, _draw_margin(log_p.exp(), draw))
    return torch.minimum(margin, decision.cummin(1).values)
