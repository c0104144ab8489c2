"""The law test sees the mistakes that published code makes: each is put into the loop here, and each is rejected.

All are variants of ``mc-sjd`` with uniform first drafts, which as it stands passes (``test_law.py``, and the control below).
"""

from __future__ import annotations

import pytest
import torch

from sjd2.decoding import loop, resolve_preset
from sjd2_kernels import Q_UNIFORM, Rule, Verification, verify
from sjd2_kernels.processing import RowStatistics, log_probabilities, row_statistics, scaled_logits
from sjd2_kernels.random import gumbel_noise
from sjd2_kernels.verify.reference import _draft_distribution, _residual
from support.law import FALSE_ALARM, Agreement, Cell, agreement

#: A thousand times rarer than the false alarms of the law test.
REJECTED = FALSE_ALARM / 1000

CELL = Cell(rows=200_000, groups=((2, 5, 0), (1, 5, 1)), seed=5)


def _agreement(monkeypatch, verify_instead, method: str = "mc-sjd", **settings) -> Agreement:
    monkeypatch.setattr(loop, "verify", verify_instead)
    return agreement(CELL, resolve_preset(method, window=5, **({"initialisation": "uniform"} | settings)))


def _replace_rows(logits: torch.Tensor, result: Verification, where: torch.Tensor, rows: torch.Tensor, statistics: RowStatistics) -> Verification:
    """Make the loop believe that slots ``where`` were drawn from ``rows``; it retains ``logits``, so they are changed in place."""
    logits[where] = rows[where]
    mixed = (torch.where(where, theirs, ours) for theirs, ours in zip(statistics, result.statistics, strict=True))
    return result._replace(statistics=RowStatistics(*mixed))


def _old_rows(logits: torch.Tensor, last, q_row: torch.Tensor) -> tuple[torch.Tensor, RowStatistics]:
    """The logits and statistics that the current drafts came from; flat ones for uniform drafts."""
    flat = torch.zeros_like(logits)
    statistics = RowStatistics(
        torch.full(q_row.shape, -torch.inf, dtype=logits.dtype),
        torch.full(q_row.shape, logits.shape[-1]),
        torch.full(q_row.shape, float(logits.shape[-1]), dtype=logits.dtype).log(),
    )
    if last is None:
        return flat, statistics
    row, slot = torch.arange(len(q_row))[:, None], q_row.clamp(min=0)
    drawn = q_row != Q_UNIFORM
    old = RowStatistics(*(torch.where(drawn, before[row, slot], plain) for before, plain in zip(last.statistics, statistics, strict=True)))
    return torch.where(drawn[..., None], last.logits[row, slot], flat), old


def old_q_is_kept(logits, uncond, processing, **arguments):
    result = verify(logits, uncond, processing, **arguments)
    return _replace_rows(logits, result, result.kept, *_old_rows(logits, arguments["last"], arguments["q_row"]))


def rows_commit_in_lock_step_with_the_old_q(logits, uncond, processing, **arguments):
    result = old_q_is_kept(logits, uncond, processing, **arguments)
    pairs = result.committed.view(-1, 2)
    together = torch.where(pairs > 0, pairs, pairs.amax(1, keepdim=True)).amin(1, keepdim=True).expand_as(pairs)
    return result._replace(committed=torch.minimum(together.flatten(), result.committed))


def a_slot_is_dropped_for_its_own_rejection(logits, uncond, processing, **arguments):
    result = verify(logits, uncond, processing, **arguments)
    slot = torch.arange(logits.shape[1])
    dropped = ~result.kept & (slot >= result.committed[:, None])
    generator = torch.Generator().manual_seed(int(arguments["iteration"].max()))
    fresh = torch.randint(logits.shape[-1], result.tokens.shape, generator=generator)
    flat, statistics = _old_rows(logits, None, arguments["q_row"])
    result = _replace_rows(logits, result, dropped, flat, statistics)
    return result._replace(tokens=torch.where(dropped, fresh, result.tokens))


def residuals_use_the_frozen_noise(logits, uncond, processing, **arguments):
    result = verify(logits, uncond, processing, **arguments)
    z = scaled_logits(logits, uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing))
    log_q = _draft_distribution(arguments["q_row"], arguments["drafts"], arguments["last"], processing, log_p)
    residual = _residual(log_p.exp(), log_q, arguments["q_row"] != -1)
    positions = arguments["position"][:, None] + torch.arange(logits.shape[1])
    noise = gumbel_noise(arguments["seeds"], positions, logits.shape[-1], dtype=log_p.dtype)
    first = (~result.kept).long().cumsum(1) == 1  # slots after it are redrawn with the frozen noise by the rule itself
    frozen = (residual.log() + noise).argmax(-1)
    return result._replace(tokens=torch.where(~result.kept & first, frozen, result.tokens))


def test_the_control_is_not_rejected(monkeypatch):
    found = _agreement(monkeypatch, verify)
    assert found.holds, found


@pytest.mark.parametrize(
    "broken", [old_q_is_kept, rows_commit_in_lock_step_with_the_old_q, a_slot_is_dropped_for_its_own_rejection], ids=lambda broken: broken.__name__
)
def test_a_biased_update_is_rejected(monkeypatch, broken):
    assert _agreement(monkeypatch, broken).p_value < REJECTED


def test_a_residual_drawn_with_the_frozen_noise_is_rejected(monkeypatch):
    assert _agreement(monkeypatch, residuals_use_the_frozen_noise, "gs-sjd").p_value < REJECTED


def test_a_copied_token_with_its_neighbours_p_as_q_is_rejected(monkeypatch):
    honest = loop.fresh_drafts

    def dishonest(_, **arguments):
        drafts, _ = honest("left-copy", **arguments)
        return drafts, torch.full_like(drafts, arguments["updated"].shape[1] - 1)

    monkeypatch.setattr(loop, "fresh_drafts", dishonest)
    assert agreement(CELL, resolve_preset("mc-sjd", window=2)).p_value < REJECTED


def test_ratio_acceptance_without_a_residual_is_rejected(monkeypatch):
    """Rejected drafts redrawn from p instead of norm(max(0, p - q))."""

    def broken(logits, uncond, processing, **arguments):
        result = verify(logits, uncond, processing, **arguments)
        fresh = verify(logits, uncond, processing, **(arguments | {"q_row": torch.full_like(arguments["q_row"], -1)}))
        return result._replace(tokens=torch.where(result.kept, result.tokens, fresh.tokens))

    assert _agreement(monkeypatch, broken).p_value < REJECTED


def test_committing_past_a_rejection_is_rejected(monkeypatch):
    def broken(logits, uncond, processing, **arguments):
        result = verify(logits, uncond, processing, **arguments)
        further = (result.committed + 1).clamp(max=logits.shape[1])
        return result._replace(committed=torch.minimum(further, arguments["remaining"]))

    assert _agreement(monkeypatch, broken).p_value < REJECTED


@pytest.mark.parametrize("method", ["ar", "jacobi", "sjd", "mc-sjd", "gs-sjd"])
def test_a_bias_of_two_percent_of_one_token_is_rejected(monkeypatch, method):
    """The law of the first token of five is moved by .02 in total variation; everything after it is right."""

    def biased(logits, uncond, processing, **arguments):
        first = (arguments["position"] == 0) & (arguments["remaining"] > 0)
        p = logits[first, 0].softmax(-1)
        top = p.argmax(-1, keepdim=True)
        moved = torch.full_like(top, 0.02, dtype=p.dtype)
        logits[first, 0] = p.scatter_add(-1, top, -moved).scatter_add(-1, (top + 1) % p.shape[-1], moved).log()
        return verify(logits, uncond, processing, **arguments)

    monkeypatch.setattr(loop, "verify", biased)
    found = agreement(CELL, resolve_preset(method, window=1 if method == "ar" else 3))
    assert found.p_value < REJECTED
    assert found.variation > 0.019


def test_rules_are_what_the_variants_start_from():
    assert resolve_preset("mc-sjd").rule is Rule.COUPLED
    assert resolve_preset("gs-sjd").rule is Rule.GUMBEL_TAIL
