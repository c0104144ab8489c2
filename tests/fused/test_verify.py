"""The fused ``verify`` against its definition: tokens, statistics, commit counts, on every path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sjd2_kernels import Q_NONE, LastForward, LogitsProcessing, Rule, verify
from sjd2_kernels.fused import INTERPRETED
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from support.fused import compare_verify, random_window, to
from support.windows import windows

RULES = list(Rule)
SINGLE_PATH = ["row_statistics_kernel", "draw_kernel"]
SPLIT_PATH = ["split_sweep_kernel", "split_merge_kernel", "draw_kernel"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [1, 97, 1000, 2500])  # one id; one block; a block that is not full; several blocks
def test_tokens_are_those_of_the_definition(rule, vocab, device, launches):
    case = random_window(3, 31, vocab, top_k=[0, 20, 5000], temperature=[1.0, 0.7, 1.3], seed=vocab)
    got = compare_verify(case, rule, device)
    assert [name for name, *_ in launches] == SINGLE_PATH
    if rule is not Rule.GUMBEL and vocab > 1:
        assert 0 < got.kept.double().mean() < 1, "both outcomes of the test occur"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [97, pytest.param(1000, marks=pytest.mark.full)])
def test_rounding_decides_few_slots(rule, vocab, device):
    """Of 2,048 slots at most 4 may differ, each by a margin that is rounding."""
    compare_verify(random_window(64, 32, vocab, top_k=vocab // 2, seed=9), rule, device, excused_share=0.002)


@pytest.mark.parametrize("rule", RULES)
def test_guidance_masks_ties_and_top_p(rule, device):
    case = random_window(
        4, 16, 200, dtype=torch.bfloat16, guided=True, rounded=True, allowed=torch.arange(200) % 3 > 0,
        top_k=[0, 1, 50, 7], top_p=[0.9, 1.0, 0.5, 0.99], temperature=[1, 0, 0.5, 2], seed=5,
    )  # fmt: skip
    compare_verify(case, rule, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_last", [False, True])
def test_dtypes_and_a_first_iteration(dtype, has_last, device):
    compare_verify(random_window(2, 9, 300, dtype=dtype, has_last=has_last, top_k=30), Rule.COUPLED, device)


@pytest.mark.parametrize("window", [1, 31, 96, 128])
def test_window_sizes(window, device):
    compare_verify(random_window(2, window, 33, seed=window), Rule.FRESH, device)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("search", [{}, {"top_k": [9, 0]}, {"top_k": 12, "top_p": [0.5, 1.0]}], ids=["all", "top-k", "top-k-p"])
def test_split_rows(rule, search, device, launches, small_splits):
    case = random_window(2, 2, 1300, guided=True, peak=3.0, **search)
    compare_verify(case, rule, device)
    assert [name for name, *_ in launches] == SPLIT_PATH
    assert launches[0][1] == (4, 6)
    assert launches[2][1] == (4, 6), "the draws of a row are split as well"


@pytest.mark.parametrize(
    "search",
    [{"top_k": 300}, {"top_p": 0.97}, {"top_k": 300, "top_p": 0.97}, {"top_k": 3, "rounded": True, "peak": 0.1}],
    ids=["k", "p", "k-p", "ties"],
)
def test_rows_whose_candidates_do_not_suffice_are_swept(search, device, sweeps, small_splits):
    """More ids to keep, or more equal ones at the border, than the splits leave candidates."""
    compare_verify(random_window(1, 2, 600, **({"peak": 1.0} | search)), Rule.COUPLED, device)
    assert sweeps or not INTERPRETED


@pytest.mark.parametrize(
    ("path", "top_k"), [("single", 0), ("single", 5), ("single", 90), ("single", 200), ("candidates", 5), ("sweeps", 0), ("sweeps", 90)]
)
def test_a_top_p_next_to_one_keeps_what_there_is(path, top_k, device, request):
    """As much as 1 − 2⁻²⁴ of a sum may be more than the same numbers give in another order: then all of them are meant, not none."""
    if path != "single":
        request.getfixturevalue("small_splits")
    logits, uncond, processing, arguments = random_window(2, 24 if path == "single" else 2, 600, top_k=top_k, top_p=1 - 2**-24, peak=3.0)
    if path == "sweeps":  # the highest ids are in one split, more of them than it may leave
        logits[..., :200] += 40.0
    arguments |= {"forced": torch.full_like(arguments["forced"], -1), "last": None, "q_row": torch.full_like(arguments["q_row"], Q_NONE)}
    found = compare_verify((logits, uncond, processing, arguments), Rule.FRESH, device)
    z = scaled_logits(logits, uncond, processing)
    whole = row_statistics(z, replace(processing, uses_top_p=False))
    torch.testing.assert_close(found.statistics.logsumexp, whole.logsumexp, atol=1e-5, rtol=0)
    assert torch.isfinite(log_probabilities(z, whole).gather(-1, found.tokens[..., None])).all()


def test_high_logits_crowded_in_one_split_are_found_by_a_sweep(device, sweeps, small_splits):
    """A split that has more of the row's highest ids than it may leave: its border is above the row's threshold."""
    logits, uncond, processing, arguments = random_window(1, 1, 1200, top_k=150, peak=1.0)
    logits[..., 260:420] += 10
    compare_verify((logits, uncond, processing, arguments | {"last": None}), Rule.COUPLED, device)
    assert sweeps or not INTERPRETED


@pytest.mark.parametrize(("vocab", "align"), [(1304, 8), (1300, 4), (1302, 2), (1301, 1)])
def test_enough_candidates_mean_no_sweep(vocab, align, device, sweeps, small_splits, launches):
    compare_verify(random_window(2, 3, vocab, top_k=12, top_p=0.9, guided=True), Rule.COUPLED, device)
    assert not sweeps
    assert launches[0][2]["ALIGN"] == align, "rows are loaded in pieces as large as their places allow"


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda z: z.masked_fill(torch.arange(1300) % 5 > 0, torch.finfo(torch.float32).min), {}),
        (lambda z: z.masked_fill(torch.arange(1300) % 11 > 0, -torch.inf), {}),
        (lambda z: z + 10_000, {}),
        (lambda z: z - 10_000, {}),
        (lambda z: z**3, {}),
        (lambda z: z, {"temperature": 0.01}),
        (lambda z: z, {"temperature": 50.0}),
    ],
    ids=["masked by a number", "masked", "high", "low", "heavy tails", "cold", "hot"],
)
def test_whatever_logits_look_like_the_splits_leave_enough_candidates(change, settings, device, sweeps, small_splits):
    logits, uncond, processing, arguments = random_window(1, 3, 1300, top_k=60, **settings)
    assert uncond is None
    compare_verify((change(logits), None, processing, arguments), Rule.COUPLED, device)
    assert not sweeps


@pytest.mark.parametrize("vocab", [65_536, pytest.param(131_072, marks=pytest.mark.full), 184_622])
def test_large_vocabularies(vocab, device, launches):
    case = random_window(1, 2, vocab, dtype=torch.bfloat16, guided=True, top_k=2048, seed=2)
    compare_verify(case, Rule.GUMBEL_TAIL, device, excused_share=None)
    assert [name for name, *_ in launches] == SPLIT_PATH


@settings(max_examples=settings.default.max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows(dtypes=(torch.float32, torch.bfloat16, torch.float16), largest_vocab=40), st.sampled_from(RULES))
def test_whatever_the_shapes_dtypes_and_settings(device, case, rule):
    compare_verify(case, rule, device, excused_share=None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", [False, True])
def test_the_same_call_gives_the_same_bits(rule, split, device, request):
    if split:
        request.getfixturevalue("small_splits")
    logits, uncond, processing, arguments = random_window(2, 6, 700, top_k=9, top_p=0.3, seed=3)
    moved = {name: to(value, device) for name, value in arguments.items()}
    first, second = (verify(to(logits, device), uncond, to(processing, device), rule=rule, backend="triton", **moved) for _ in range(2))
    for a, b in zip((*first[:3], *first.statistics), (*second[:3], *second.statistics), strict=True):
        assert torch.equal(a, b)


def test_statistics_are_interchangeable_with_the_definition(device):
    """q rebuilt by either back-end from the statistics of the other: a converged window is kept as a whole."""
    logits, uncond, processing, arguments = random_window(3, 12, 500, guided=True, top_k=40, top_p=0.9, dtype=torch.bfloat16)
    case = [to(value, device) for value in (logits, uncond, processing)]
    arguments = {name: to(value, device) for name, value in arguments.items()}
    free = {"forced": torch.full_like(arguments["forced"], -1), "last": None, "q_row": torch.full_like(arguments["q_row"], Q_NONE)}
    slot = torch.arange(12, device=device).expand(3, 12)
    for first, second in (("torch", "triton"), ("triton", "torch")):
        drawn = verify(*case, rule=Rule.COUPLED, backend=first, **(arguments | free))
        again = {"drafts": drawn.tokens, "q_row": slot.contiguous(), "last": LastForward(*case[:2], drawn.statistics)}
        kept = verify(*case, rule=Rule.COUPLED, backend=second, **(arguments | free | again)).kept
        assert kept.all()


@pytest.mark.parametrize(("rule", "vocab"), [(rule, 5) for rule in RULES] + [(rule, 600) for rule in RULES])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_reported_per_row_and_tokens_stay_in_range(rule, vocab, bad, device, small_splits):
    logits, uncond, processing, arguments = random_window(4, 3, vocab, top_k=3, top_p=0.9)
    arguments["forced"].fill_(-1)
    arguments["remaining"] = torch.tensor([9, 9, 9, 0])
    logits[1, 2, 3] = bad
    logits[2, 0] = -torch.inf
    logits[3, 1, 1] = bad  # a finished row
    result = verify(
        to(logits, device),
        uncond,
        to(processing, device),
        rule=rule,
        backend="triton",
        **{name: to(value, device) for name, value in arguments.items()},
    )
    assert result.invalid.tolist() == [False, True, True, False]
    assert ((result.tokens >= 0) & (result.tokens < vocab)).all()


def test_forced_slots_do_not_look_at_their_logits(device):
    logits, uncond, processing, arguments = random_window(2, 4, 50)
    logits[:, 1] = -torch.inf
    arguments["forced"][:] = torch.tensor([-1, 7, -1, 60])  # an id outside the slice is the caller's business
    compare_verify((logits, uncond, processing, arguments), Rule.FRESH, device)


def test_scratch_is_below_16_mb_at_the_largest_shape(monkeypatch):
    """Every tensor that the call makes at V = 184,622, W = 96, B = 8, results included; the kernels themselves are left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from sjd2_kernels.fused import launch

    monkeypatch.setattr(launch, "torch", torch)

    class Silent:
        def __getitem__(self, grid):
            return lambda **arguments: None

    for name in ("row_statistics_kernel", "split_sweep_kernel", "split_merge_kernel", "draw_kernel"):
        monkeypatch.setattr(launch, name, Silent())

    class Allocations(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = {t.untyped_storage().data_ptr(): t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)}
            given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
            Allocations.bytes += sum(t.untyped_storage().nbytes() for address, t in made.items() if address not in given)
            return out

    batch, window, vocab = 8, 96, 184_622
    logits = torch.zeros(1, dtype=torch.bfloat16).expand(batch, window, vocab)
    zeros, ones = torch.zeros(batch, window, dtype=torch.int64), torch.ones(batch, window, dtype=torch.int64)
    processing = LogitsProcessing.create(batch, guidance_scale=3.0, top_k=2048, top_p=0.9)
    row = torch.zeros(batch, dtype=torch.int64)
    with Allocations():
        launch.verify_fused(
            logits, logits, processing, rule=Rule.GUMBEL_TAIL, drafts=zeros, q_row=zeros, last=None, clean=zeros == 0, forced=-ones,
            remaining=row, seeds=row, iteration=row, position=row, log_keep_ratio=0.0, end_id=-1,
        )  # fmt: skip
    assert 4e6 < Allocations.bytes < 16e6, Allocations.bytes


def test_float64_and_unknown_back_ends_are_refused(device):
    logits, uncond, processing, arguments = random_window(1, 2, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="verify cannot run on 'triton' here: the kernels compute in float32"):
        verify(logits, uncond, processing, rule=Rule.FRESH, backend="triton", **arguments)
    with pytest.raises(ValueError, match="backend: expected one of auto, torch, triton, cpp, native, got 'cuda'"):
        verify(logits, uncond, processing, rule=Rule.FRESH, backend="cuda", **arguments)
