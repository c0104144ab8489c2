"""What Triton's interpreter forgives and a GPU does not: every kernel on every path, under ``support.interpreted``.

Results must be the same to the last bit whatever the order of programs is and whatever lies in memory that nobody wrote.
"""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels import Purpose, Rule, denoise, sample, verify, window_attention
from sjd2_kernels.fused import INTERPRETED, attention, plans
from sjd2_kernels.fused import denoise as denoising
from support.attention import attention_case, paged
from support.embeddings import denoising_case
from support.fused import random_window, some_slots
from support.interpreted import interpreted

if not INTERPRETED:
    pytest.skip("programs are watched in Triton's interpreter", allow_module_level=True)

RULES = list(Rule)
SINGLE_PATH = ["row_statistics_kernel", "draw_kernel"]
SPLIT_PATH = ["split_sweep_kernel", "split_merge_kernel", "draw_kernel"]


@pytest.fixture(autouse=True)
def divided(monkeypatch) -> None:
    """Small calls are divided over programs as large ones are on a GPU, where the interpreter would put them into one."""
    monkeypatch.setattr(plans, "TILE", 256)
    monkeypatch.setattr(denoising, "INTERPRETED", False)
    monkeypatch.setattr(attention, "INTERPRETED", False)
    monkeypatch.setattr(attention, "LEAST_COLUMNS", 16)


def bits(result) -> list[bytes]:
    """All tensors of a result, as bytes: NaN equals NaN."""
    if isinstance(result, torch.Tensor):
        return [result.contiguous().view(torch.uint8).numpy().tobytes()]
    return [one for part in result for one in bits(part)]


def check(call, kernels: list[str], orders=("descending",)) -> None:
    """``call`` gives the same bits in every order, and no program relies on another."""
    with interpreted("ascending") as watched:
        wanted = bits(call())
    assert [name for name, _ in watched.launches] == kernels
    assert all(programs > 1 for _, programs in watched.launches)
    for number, order in enumerate(orders):
        with interpreted(order, garbage=(number + 1) % 2):
            assert bits(call()) == wanted, f"order {order}"


def fields(result) -> list:
    """What a :class:`Verification` holds."""
    return [result.tokens, result.kept, result.committed, *result.statistics, result.invalid]


def check_verify(case, rule, kernels, **named) -> None:
    logits, uncond, processing, arguments = case
    check(lambda: fields(verify(logits, uncond, processing, rule=rule, backend="triton", **arguments)), kernels, **named)


@pytest.mark.parametrize("rule", RULES)
def test_verify_with_rows_that_share_programs(rule):
    check_verify(random_window(3, 4, 97, guided=True, top_k=[0, 20, 50], top_p=[0.9, 1.0, 0.5], allowed=torch.arange(97) % 3 > 0), rule, SINGLE_PATH)


@pytest.mark.parametrize(
    ("rule", "search"),
    [(rule, {}) for rule in RULES]
    + [(rule, {"top_k": 12, "top_p": 0.5}) for rule in (Rule.COUPLED, Rule.GUMBEL_TAIL, Rule.GUMBEL)]
    + [pytest.param(rule, {"top_k": 9}, marks=pytest.mark.full) for rule in RULES]
    + [pytest.param(rule, {"top_p": 0.5}, marks=pytest.mark.full) for rule in RULES],
)
def test_verify_with_split_rows(rule, search, small_splits):
    check_verify(random_window(1, 3, 600, guided=True, peak=3.0, **search), rule, SPLIT_PATH)


def test_verify_with_a_sweep(small_splits, sweeps):
    check_verify(random_window(1, 2, 300, top_k=200, peak=1.0), Rule.COUPLED, SPLIT_PATH)
    assert sweeps


@pytest.mark.parametrize("vocab", [100, 300])
def test_verify_with_rows_that_cannot_be_drawn_from(vocab, small_splits):
    """What they give is worthless, but the same whatever happens."""
    logits, uncond, processing, arguments = random_window(1, 3, vocab, has_last=False)
    logits[0, 0, 3], logits[0, 1] = torch.nan, -torch.inf
    arguments["forced"].fill_(-1)
    check_verify((logits, uncond, processing, arguments), Rule.GUMBEL_TAIL, SINGLE_PATH if vocab < 256 else SPLIT_PATH)


@pytest.mark.full
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", [False, True])
def test_verify_in_many_orders(rule, seed, split, request):
    if split:
        request.getfixturevalue("small_splits")
    case = random_window(3, 5, 600 if split else 97, guided=True, rounded=True, top_k=[0, 20, 50], top_p=[0.9, 1.0, 0.5], seed=seed)
    check_verify(case, rule, SPLIT_PATH if split else SINGLE_PATH, orders=("descending", *range(5)))


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.GUMBEL])
@pytest.mark.parametrize(("vocab", "given"), [(97, 3), (300, 1)])
def test_sample(purpose, vocab, given, small_splits):
    logits, uncond, processing, _ = random_window(2, given, vocab, dtype=torch.bfloat16, guided=True, temperature=[1.0, 0.5])
    check(
        lambda: sample(logits, uncond, processing, purpose=purpose, backend="triton", **some_slots(2, 3)),
        SINGLE_PATH if vocab < 256 else SPLIT_PATH,
        orders=("descending", 1),
    )


@pytest.mark.parametrize(("width", "dtype"), [(50, torch.bfloat16), (1030, torch.float32)])
def test_denoise(width, dtype):
    tensors, arguments = denoising_case(2, 4, width, dtype)
    check(lambda: denoise(*tensors, backend="triton", **arguments), ["denoise_kernel"], orders=("descending", 1))


@pytest.mark.parametrize("timesteps", [0, 2])
@pytest.mark.parametrize("page_size", [0, 24])
@pytest.mark.parametrize("split", [False, True])
def test_attention(timesteps, page_size, split, monkeypatch):
    if not split:
        monkeypatch.setattr(attention, "LEAST_COLUMNS", 128)
    # Behind the inputs of a row lies what is not finite, and there are more inputs than a tile has.
    query, keys, values, lengths, levels = attention_case(2, 4, 2, 5, 70, 16, timesteps=timesteps)
    table = None
    if page_size:
        keys, values, table = paged(keys, values, page_size)
        table = table.masked_fill(torch.arange(table.shape[1]) * page_size >= lengths[:, None] + 5, -1)
    check(
        lambda: window_attention(query, keys, values, lengths, levels, block_table=table, backend="triton"),
        ["window_attention_kernel", *["merge_splits_kernel"] * split],
        orders=("descending", 1),
    )
