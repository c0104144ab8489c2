"""The definition of ``verify``: what each rule keeps, redraws and commits."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sjd2_kernels import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, LogitsProcessing, Purpose, Rule, verify
from sjd2_kernels.processing import row_statistics, scaled_logits
from sjd2_kernels.random import uniforms

MRS_RULES = [Rule.FRESH, Rule.COUPLED, Rule.GUMBEL_TAIL, Rule.KEEP_RATIO]


def last_forward(logits, processing):
    return LastForward(logits, None, row_statistics(scaled_logits(logits, None, processing), processing))


def call(logits, *, rule=Rule.COUPLED, processing=None, **changes):
    batch, window, _ = logits.shape
    arguments = {
        "drafts": torch.zeros(batch, window, dtype=torch.int64),
        "q_row": torch.full((batch, window), Q_NONE),
        "last": None,
        "clean": torch.ones(batch, window, dtype=torch.bool),
        "forced": torch.full((batch, window), -1),
        "remaining": torch.full((batch,), 1000),
        "seeds": torch.arange(batch),
        "iteration": torch.zeros(batch, dtype=torch.int64),
        "position": torch.zeros(batch, dtype=torch.int64),
    }
    return verify(logits, None, processing or LogitsProcessing.create(batch), rule=rule, **(arguments | changes))


ROWS = 60_000
P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.4, 0.1, 0.4], dtype=torch.float64)


def _drafts_from(q: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(q.expand(ROWS, -1), 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", MRS_RULES)
@pytest.mark.parametrize(
    ("q", "source"), [(Q, 0), (torch.full((4,), 0.25, dtype=torch.float64), Q_UNIFORM), (P, 0)], ids=["other", "uniform", "equal"]
)
def test_modified_rejection_sampling_gives_p_and_keeps_one_minus_tv(rule, q, source):
    processing = LogitsProcessing.create(ROWS)
    last = last_forward(q.log().expand(ROWS, 1, 4), processing)
    result = call(
        P.log().expand(ROWS, 1, 4), rule=rule, processing=processing, drafts=_drafts_from(q), q_row=torch.full((ROWS, 1), source), last=last
    )
    counts = torch.bincount(result.tokens.flatten(), minlength=4).numpy()
    assert stats.chisquare(counts, (P * ROWS).numpy()).pvalue > 1e-4
    keep = 1 - 0.5 * float((P - q).abs().sum())
    assert abs(float(result.kept.double().mean()) - keep) < 5 * (keep * (1 - keep) / ROWS) ** 0.5 + 1e-12


def test_a_copied_token_is_kept_with_its_probability_and_never_redrawn_as_itself():
    drafts = torch.ones(ROWS, 1, dtype=torch.int64)
    result = call(P.log().expand(ROWS, 1, 4), drafts=drafts, q_row=torch.full((ROWS, 1), Q_POINT))
    assert abs(float(result.kept.double().mean()) - 0.3) < 5 * (0.21 / ROWS) ** 0.5
    assert (result.tokens[~result.kept] != 1).all()


def test_a_draft_without_q_is_never_kept():
    result = call(torch.zeros(50, 3, 2))
    assert not result.kept.any()


def test_the_converged_state_is_kept_and_an_empty_residual_falls_back_to_p():
    logits = torch.randn(200, 4, 30, generator=torch.Generator().manual_seed(1))
    processing = LogitsProcessing.create(200, top_k=5)
    first = call(logits, processing=processing)
    again = call(logits, processing=processing, drafts=first.tokens, q_row=torch.arange(4).expand(200, 4), last=last_forward(logits, processing))
    assert again.kept.all()
    assert torch.equal(again.tokens, first.tokens)
    # A draft that p cannot give, with q = p: rejected, and the residual has no mass at all.
    impossible = logits.argmin(-1)
    redrawn = call(logits, processing=processing, drafts=impossible, q_row=torch.arange(4).expand(200, 4), last=last_forward(logits, processing))
    assert not redrawn.kept.any()
    top = logits.topk(5, dim=-1).indices
    assert (redrawn.tokens[..., None] == top).any(-1).all()


def test_the_random_words_are_those_of_the_contract():
    """Word 0 of the VERIFY purpose accepts, word 1 resamples: another back-end that follows ``random.py`` gives these tokens."""
    logits = torch.randn(100, 5, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    seeds, iteration, position = torch.arange(100), torch.full((100,), 4), torch.full((100,), 20)
    accept, resample = uniforms(seeds, Purpose.VERIFY, iteration, position[:, None] + torch.arange(5), dtype=torch.float64)[..., :2].unbind(-1)
    p = logits.softmax(-1)
    drafts = torch.randint(9, (100, 5), generator=torch.Generator().manual_seed(7))
    arguments = {"seeds": seeds, "iteration": iteration, "position": position, "drafts": drafts}
    kept = call(logits, q_row=torch.full((100, 5), Q_UNIFORM), **arguments).kept
    assert torch.equal(kept, accept / 9 < p.gather(-1, drafts[..., None]).squeeze(-1))
    tokens = call(logits, q_row=torch.full((100, 5), Q_NONE), **arguments).tokens
    assert torch.equal(tokens, (p.cumsum(-1) <= resample[..., None]).sum(-1))


def test_q_is_taken_from_the_row_that_a_draft_came_from():
    processing = LogitsProcessing.create(1)
    last = last_forward(torch.tensor([[[0.0, -9.0], [-9.0, 0.0]]]), processing)
    logits = torch.tensor([[[0.0, -9.0], [0.0, -9.0]]])
    result = call(logits, drafts=torch.tensor([[0, 1]]), q_row=torch.tensor([[0, 1]]), last=last)
    assert result.kept.tolist() == [[True, False]]


@pytest.mark.parametrize("rule", list(Rule))
def test_forced_slots_are_kept_as_they_are_whatever_the_logits_say(rule):
    logits = torch.full((1, 3, 4), -torch.inf)
    logits[:, 0] = 0.0
    result = call(logits, rule=rule, drafts=torch.tensor([[0, 3, 2]]), forced=torch.tensor([[-1, 3, 1]]))
    assert result.tokens[0, 1:].tolist() == [3, 1]
    assert result.kept[0, 1:].tolist() == [True, False], "a forced slot that was fed another id vouches for nothing"
    assert not result.invalid.any()


def test_after_the_first_rejection_each_rule_does_its_own():
    """Slot 0 is rejected for certain; slot 1 holds a draft that p likes more than q did."""
    rows = 4000
    processing = LogitsProcessing.create(rows)
    sure = torch.tensor([[0.0, -50.0], [3.0, 0.0]]).expand(rows, 2, 2)
    last = last_forward(torch.tensor([[-50.0, 0.0], [0.0, 0.0]]).expand(rows, 2, 2), processing)
    drafts, q_row = torch.tensor([[1, 0]]).expand(rows, 2), torch.tensor([[0, 1]]).expand(rows, 2)
    results = {rule: call(sure, rule=rule, processing=processing, drafts=drafts, q_row=q_row, last=last) for rule in MRS_RULES}
    assert all(not result.kept[:, 0].any() for result in results.values())
    assert results[Rule.COUPLED].kept[:, 1].all()
    assert results[Rule.KEEP_RATIO].kept[:, 1].all()
    assert not results[Rule.FRESH].kept[:, 1].any()
    frozen = call(sure, rule=Rule.GUMBEL, processing=processing)
    assert torch.equal(results[Rule.GUMBEL_TAIL].tokens[:, 1], frozen.tokens[:, 1])
    assert not torch.equal(results[Rule.FRESH].tokens[:, 1], frozen.tokens[:, 1])
    strict = call(sure, rule=Rule.KEEP_RATIO, processing=processing, drafts=drafts, q_row=q_row, last=last, keep_ratio=100.0)
    assert not strict.kept[:, 1].any()


@pytest.mark.parametrize("rule", [Rule.FRESH, Rule.GUMBEL_TAIL])
def test_a_forced_slot_is_not_the_first_rejection(rule):
    """Slots after a structural token still take the ratio test, although its own draft has no q."""
    logits = torch.zeros(500, 2, 4)
    processing = LogitsProcessing.create(500)
    result = call(
        logits,
        rule=rule,
        processing=processing,
        drafts=torch.tensor([[3, 1]]).expand(500, 2),
        q_row=torch.tensor([[Q_NONE, 1]]).expand(500, 2),
        last=last_forward(logits, processing),
        forced=torch.tensor([[3, -1]]).expand(500, 2),
    )
    assert result.kept.all()


def test_a_draft_of_a_forward_that_is_not_given_has_no_q():
    result = call(torch.zeros(50, 2, 4), q_row=torch.zeros(50, 2, dtype=torch.int64))
    assert not result.kept.any()


COMMITS = [
    # kept by force, clean, remaining, expected
    ([1, 1, 1, 1], [1, 1, 1, 1], 9, 4),
    ([1, 0, 1, 1], [1, 1, 1, 1], 9, 2),
    ([0, 1, 1, 1], [1, 1, 1, 1], 9, 1),
    ([1, 1, 1, 0], [1, 1, 1, 1], 9, 4),  # the last draft was not fed: whether it was kept does not matter
    ([1, 1, 1, 1], [1, 0, 1, 1], 9, 2),  # a noisy slot vouches for nothing
    ([1, 1, 1, 1], [0, 1, 1, 1], 9, 1),
    ([1, 1, 1, 1], [1, 1, 1, 1], 3, 3),
    ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),
]


@pytest.mark.parametrize(("kept", "clean", "remaining", "expected"), COMMITS)
def test_commit_count(kept, clean, remaining, expected):
    forced = torch.tensor([[1] * 4])
    drafts = torch.tensor([[1 if keep else 0 for keep in kept]])
    result = call(torch.zeros(1, 4, 2), drafts=drafts, forced=forced, clean=torch.tensor([clean]).bool(), remaining=torch.tensor([remaining]))
    assert result.committed.tolist() == [expected]


def test_nothing_is_committed_after_an_end_id():
    forced = torch.tensor([[0, 2, 0, 2], [2, 0, 0, 0], [0, 0, 0, 0]])
    result = call(torch.zeros(3, 4, 3), drafts=forced, forced=forced, end_id=2)
    assert result.committed.tolist() == [2, 1, 4]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("top_k", [0, 2])
def test_bad_logits_are_reported_per_row_and_tokens_stay_in_range(bad, rule, top_k):
    logits = torch.zeros(4, 3, 5)
    logits[1, 2, 3] = bad
    logits[2, 0] = -torch.inf
    logits[3, 1, 1] = bad  # a finished row
    result = call(logits, rule=rule, processing=LogitsProcessing.create(4, top_k=top_k), remaining=torch.tensor([9, 9, 9, 0]))
    assert result.invalid.tolist() == [False, True, True, False]
    assert ((result.tokens >= 0) & (result.tokens < 5)).all()


@pytest.mark.parametrize("rule", list(Rule))
def test_a_row_does_not_depend_on_its_company(rule):
    generator = torch.Generator().manual_seed(3)
    logits, previous = torch.randn(2, 6, 5, 17, generator=generator)
    processing = LogitsProcessing.create(6, temperature=[0.5, 1, 1.5, 2, 1, 0], top_k=[0, 3, 5, 0, 17, 0], top_p=[1, 1, 0.9, 0.5, 1, 1])
    last = last_forward(previous, processing)
    per_row = {
        "drafts": torch.randint(17, (6, 5), generator=generator),
        "q_row": torch.tensor([[0, 1, 4, Q_UNIFORM, Q_POINT]] * 6),
        "clean": torch.ones(6, 5, dtype=torch.bool),
        "forced": torch.full((6, 5), -1),
        "remaining": torch.arange(6),
        "seeds": torch.arange(6) * 7,
        "iteration": torch.arange(6),
        "position": torch.arange(6) * 2,
    }
    together = call(logits, rule=rule, processing=processing, last=last, **per_row)
    for row in range(6):
        pick = torch.tensor([row])
        alone = call(
            logits[pick], rule=rule, processing=processing.select(pick), **{name: value[pick] for name, value in per_row.items()},
            last=LastForward(previous[pick], None, type(last.statistics)(*(value[pick] for value in last.statistics))),
        )  # fmt: skip
        for name in ("tokens", "kept", "committed"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_strides_and_half_precision_make_no_difference():
    pair = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    logits, uncond = pair[..., ::2]
    processing = LogitsProcessing.create(3, guidance_scale=2.0)
    arguments = {
        "drafts": torch.zeros(3, 8, dtype=torch.int64),
        "q_row": torch.full((3, 8), Q_UNIFORM),
        "last": None,
        "clean": torch.ones(3, 8, dtype=torch.bool),
        "forced": torch.full((3, 8), -1),
        "remaining": torch.full((3,), 9),
        "seeds": torch.arange(3),
        "iteration": torch.zeros(3, dtype=torch.int64),
        "position": torch.zeros(3, dtype=torch.int64),
    }
    strided = verify(logits, uncond, processing, rule=Rule.COUPLED, **arguments)
    plain = verify(logits.float().contiguous(), uncond.float().contiguous(), processing, rule=Rule.COUPLED, **arguments)
    assert torch.equal(strided.tokens, plain.tokens)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drafts": torch.zeros(1, 2, dtype=torch.int64)}, ValueError, r"drafts: expected shape \(1, 3\), got \(1, 2\)"),
        ({"forced": torch.zeros(1, 3, dtype=torch.int32)}, TypeError, "forced: expected dtype torch.int64, got torch.int32"),
        ({"clean": torch.ones(1, 3)}, TypeError, "clean: expected dtype torch.bool, got torch.float32"),
        ({"processing": LogitsProcessing.create(2)}, ValueError, r"processing.temperature: expected shape \(1,\), got \(2,\)"),
        ({"rule": "nonsense"}, ValueError, "rule: expected one of fresh, coupled, .*, got 'nonsense'"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(1, 3, 4), **change)
