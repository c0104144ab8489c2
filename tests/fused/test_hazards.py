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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("search", [{}, {"top_k": 9}, {"top_k": 12, "top_p": 0.5}], ids=["all", "top-k", "top-k-p"])
def test_verify_with_split_rows(rule, search, small_splits):
    check_verify(random_window(1, 3, 600, guided=True, peak=3.0, **search), rule, SPLIT_PATH)
