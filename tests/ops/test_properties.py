"""What holds for ``verify`` and ``sample`` whatever the shapes, dtypes, strides and settings. ``make test-full`` tries 100,000 cases."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2_kernels import Purpose, Rule, sample, verify
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from support.windows import windows


@given(windows(), st.sampled_from(list(Rule)))
def test_verify(case, rule):
    logits, uncond, processing, arguments = case
    result = verify(logits, uncond, processing, rule=rule, **arguments)
    tokens, kept, committed = result.tokens, result.kept, result.committed
    free = arguments["forced"] < 0
    remaining, clean = arguments["remaining"], arguments["clean"]

    assert torch.equal(tokens[~free], arguments["forced"][~free])
    assert torch.equal(tokens[kept], arguments["drafts"][kept]), "a kept draft is the token"
    z = scaled_logits(logits, uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing)).gather(-1, tokens[..., None]).squeeze(-1)
    # A draft (here any id, drawn from nothing) may be kept though its probability underflows; it is never drawn.
    possible = torch.where(kept, log_p > -torch.inf, log_p.exp() > 0)
    assert (possible | ~free).all(), "every token is one that AR sampling could draw"

    assert ((committed >= 1) == (remaining > 0)).all(), "an unfinished row always moves"
    assert (committed <= torch.minimum(remaining, torch.full_like(remaining, tokens.shape[1]))).all()
    for row in range(len(tokens)):
        before_last = range(int(committed[row]) - 1)
        assert all(kept[row, slot] and clean[row, slot] for slot in before_last), "all but the last were kept and fed clean"
        assert all(tokens[row, slot] != arguments["end_id"] for slot in before_last), "nothing follows an end"
    assert not result.invalid.any()

    again = verify(logits, uncond, processing, rule=rule, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(result[:3], again[:3], strict=True))
    plain = verify(logits.clone().contiguous(), uncond, processing, rule=rule, **arguments)
    assert torch.equal(plain.tokens, tokens), "strides do not matter"


@given(windows())
def test_rules_agree_up_to_the_first_rejection(case):
    logits, uncond, processing, arguments = case
    coupled, *others = (
        verify(logits, uncond, processing, rule=rule, **arguments) for rule in (Rule.COUPLED, Rule.FRESH, Rule.GUMBEL_TAIL, Rule.KEEP_RATIO)
    )
    rejected = (~coupled.kept).long()
    head = rejected.cumsum(1) - rejected == 0
    for other in others:
        assert torch.equal(other.tokens[head], coupled.tokens[head])
        assert torch.equal(other.kept[head], coupled.kept[head])
        assert torch.equal(other.committed, coupled.committed)
    tail = ~head & (arguments["forced"] < 0)
    assert not others[0].kept[tail].any()
    assert not others[1].kept[tail].any()


@given(windows(), st.sampled_from([Purpose.DRAFT, Purpose.GUMBEL]))
def test_sample(case, purpose):
    logits, uncond, processing, arguments = case
    position = arguments["position"][:, None] + torch.arange(logits.shape[1])
    settings = {"seeds": arguments["seeds"], "iteration": arguments["iteration"], "position": position, "purpose": purpose}
    tokens = sample(logits, uncond, processing, check=True, **settings)
    z = scaled_logits(logits, uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing))
    assert (log_p.gather(-1, tokens[..., None]) > -torch.inf).all()
    frozen = verify(logits, uncond, processing, rule=Rule.GUMBEL, **(arguments | {"forced": torch.full_like(tokens, -1)})).tokens
    if purpose is Purpose.GUMBEL:
        assert torch.equal(tokens, frozen), "ar and jacobi draw the same token from the same logits"
