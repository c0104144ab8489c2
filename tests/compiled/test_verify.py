"""The compiled ``verify`` for CPUs against its definition: tokens, statistics, commit counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2_kernels import Q_NONE, LastForward, LogitsProcessing, Rule, compiled, verify
from sjd2_kernels.backends import use_backend
from support.fused import compare_verify, random_window
from support.windows import windows

RULES = list(Rule)
pytestmark = pytest.mark.skipif(compiled.obstacle("cpu") is not None, reason=f"{compiled.obstacle('cpu')}")


def compare(case, rule, **excused):
    return compare_verify(case, rule, "cpu", backend="cpp", **excused)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [1, 97, 1000, 1024, 1025, 5000])
def test_tokens_are_those_of_the_definition(rule, vocab):
    got = compare(random_window(3, 31, vocab, top_k=[0, 20, 5000], temperature=[1.0, 0.7, 1.3], seed=vocab), rule)
    if rule is not Rule.GUMBEL and vocab > 1:
        assert 0 < got.kept.double().mean() < 1, "both outcomes of the test occur"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guidance_allowed_ids_and_types(rule, dtype):
    allowed = torch.arange(1500) % 3 > 0
    compare(random_window(2, 20, 1500, dtype=dtype, guided=True, allowed=allowed, top_k=[50, 0], top_p=[1.0, 0.8]), rule)


@pytest.mark.parametrize("settings", [{"top_k": 300}, {"top_p": 0.97}, {"top_k": 300, "top_p": 0.97}, {"top_k": 3, "rounded": True, "peak": 0.1}])
def test_borders_and_ties(settings):
    compare(random_window(4, 12, 700, **({"peak": 1.0} | settings)), Rule.COUPLED)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_last_forward(rule):
    compare(random_window(3, 9, 60, has_last=False), rule)


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_special_values(rule):
    """Subnormal, largest and masked halves."""
    logits, uncond, processing, arguments = random_window(2, 4, 40, dtype=torch.float16)
    logits[..., :5] = torch.tensor([6e-8, -5e-6, 65504, -65504, -torch.inf], dtype=torch.float16)
    compare((logits, uncond, processing, arguments), rule)


def test_a_large_vocabulary():
    compare(random_window(1, 3, 184_622, dtype=torch.bfloat16, guided=True, top_k=2048, seed=2), Rule.GUMBEL_TAIL, excused_share=None)


@given(windows(dtypes=(torch.float32, torch.bfloat16, torch.float16), largest_vocab=40), st.sampled_from(RULES))
def test_whatever_the_shapes_types_and_settings(case, rule):
    compare(case, rule, excused_share=None)


@pytest.mark.parametrize("rule", RULES)
def test_threads_change_nothing(rule):
    """Beyond the size from which the compiled code calls for helpers."""
    logits, uncond, processing, arguments = random_window(4, 32, 3000, guided=True, top_k=100)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(verify(logits, uncond, processing, rule=rule, backend="cpp", **arguments))
    finally:
        torch.set_num_threads(threads)
    for one, several in zip((*results[0][:3], *results[0].statistics), (*results[1][:3], *results[1].statistics), strict=True):
        assert torch.equal(one, several)


def test_statistics_are_interchangeable_with_the_definition():
    """q rebuilt by either back-end from the statistics of the other: a converged window is kept as a whole."""
    logits, uncond, processing, arguments = random_window(3, 12, 500, guided=True, top_k=40, top_p=0.9, dtype=torch.bfloat16)
    free = {"forced": torch.full_like(arguments["forced"], -1), "last": None, "q_row": torch.full_like(arguments["q_row"], Q_NONE)}
    slot = torch.arange(12).expand(3, 12)
    for first, second in (("torch", "cpp"), ("cpp", "torch")):
        drawn = verify(logits, uncond, processing, rule=Rule.COUPLED, backend=first, **(arguments | free))
        again = {"drafts": drawn.tokens, "q_row": slot, "last": LastForward(logits, uncond, drawn.statistics)}
        assert verify(logits, uncond, processing, rule=Rule.COUPLED, backend=second, **(arguments | free | again)).kept.all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_reported_per_row_and_tokens_stay_in_range(rule, bad):
    logits, uncond, processing, arguments = random_window(4, 3, 600, top_k=3, top_p=0.9)
    arguments["forced"].fill_(-1)
    arguments["remaining"] = torch.tensor([9, 9, 9, 0])
    logits[1, 2, 3] = bad
    logits[2, 0] = -torch.inf
    logits[3, 1, 1] = bad  # a finished row
    result = verify(logits, uncond, processing, rule=rule, backend="cpp", **arguments)
    assert result.invalid.tolist() == [False, True, True, False]
    assert ((result.tokens >= 0) & (result.tokens < 600)).all()


@pytest.mark.parametrize(("name", "value"), [("drafts", 50), ("drafts", -1), ("q_row", 4), ("q_row", -4)])
def test_what_is_out_of_range_is_refused(name, value):
    logits, uncond, processing, arguments = random_window(2, 4, 50)
    arguments[name][1, 2] = value
    with pytest.raises(ValueError, match=r"drafts, q_row: expected ids in \[0, 50\), and slots below 4 .*, got otherwise in row 1"):
        verify(logits, uncond, processing, rule=Rule.COUPLED, backend="cpp", **arguments)


def test_statistics_and_parameters_of_another_kind_are_refused():
    logits, uncond, processing, arguments = random_window(2, 4, 50)
    last = arguments["last"]
    for change in ({"cut": last.statistics.cut.int()}, {"threshold": last.statistics.threshold.double()}):
        wrong = LastForward(last.logits, None, last.statistics._replace(**change))
        with pytest.raises(TypeError, match=r"last\.statistics\..*: expected torch\..* on the CPU"):
            verify(logits, uncond, processing, rule=Rule.COUPLED, backend="cpp", **(arguments | {"last": wrong}))
    short = LastForward(last.logits, None, last.statistics._replace(cut=last.statistics.cut[:, 1:]))
    with pytest.raises(ValueError, match=r"last\.statistics\.cut"):
        verify(logits, uncond, processing, rule=Rule.COUPLED, backend="cpp", **(arguments | {"last": short}))
    with pytest.raises(TypeError, match=r"processing\.top_k: expected torch\.int64"):
        verify(logits, uncond, replace(processing, top_k=processing.top_k.int()), rule=Rule.COUPLED, backend="cpp", **arguments)


def test_it_runs_on_a_cpu_unless_another_is_asked_for_or_float64_is_given(monkeypatch):
    ran = []
    run = compiled.module.cpu_verify
    monkeypatch.setattr(compiled.module, "cpu_verify", lambda *operands: ran.append(True) or run(*operands))
    logits, uncond, processing, arguments = random_window(1, 2, 5)
    verify(logits, uncond, processing, rule=Rule.FRESH, **arguments)
    assert ran == [True]
    verify(logits, uncond, processing, rule=Rule.FRESH, backend="torch", **arguments)
    with use_backend("torch"):
        verify(logits, uncond, processing, rule=Rule.FRESH, **arguments)
    wide = random_window(1, 2, 5, dtype=torch.float64)
    verify(*wide[:3], rule=Rule.FRESH, **wide[3])
    assert ran == [True]
    with pytest.raises(RuntimeError, match="verify cannot run on 'cpp' here: it computes in float32, and float64 was given"):
        verify(*wide[:3], rule=Rule.FRESH, backend="cpp", **wide[3])


def test_rows_or_slots_may_be_missing():
    for batch, window in ((0, 3), (2, 0)):
        empty = torch.zeros(batch, window, dtype=torch.int64)
        rows = torch.zeros(batch, dtype=torch.int64)
        result = verify(
            torch.zeros(batch, window, 7), None, LogitsProcessing.create(batch), rule=Rule.FRESH, drafts=empty, q_row=empty - 1, last=None,
            clean=empty == 0, forced=empty - 1, remaining=rows, seeds=rows, iteration=rows, position=rows, backend="cpp",
        )  # fmt: skip
        assert result.tokens.shape == (batch, window)
