"""The fused ``sample`` against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sjd2_kernels import Purpose, sample
from support.fused import compare_sample, random_window, some_slots, to
from support.windows import windows

PURPOSES = [Purpose.DRAFT, Purpose.GUMBEL]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("vocab", [1, 97, 1000, 2500])
def test_ids_are_those_of_the_definition(purpose, vocab, device, launches):
    logits, uncond, processing, _ = random_window(3, 40, vocab, dtype=torch.bfloat16, guided=True, top_k=[0, 30, 1], temperature=[1, 0.5, 2])
    compare_sample(logits, uncond, processing, some_slots(3, 40) | {"purpose": purpose}, device)
    assert [name for name, *_ in launches] == ["row_statistics_kernel", "draw_kernel"]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("split", [False, True])
def test_one_row_of_logits_serves_many_some_slots(purpose, split, device, launches, request):
    if split:
        request.getfixturevalue("small_splits")
    logits, uncond, processing, _ = random_window(2, 1, 700, top_k=20)
    got = compare_sample(logits, uncond, processing, some_slots(2, 9) | {"purpose": purpose}, device)
    assert got.shape == (2, 9)
    assert got.unique().numel() > 2
    statistics = launches[0]
    assert statistics[2]["W"] == 1, "the statistics of a row of logits are found once"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_large_vocabulary(purpose, device):
    logits, uncond, processing, _ = random_window(1, 1, 65_537, dtype=torch.float16, top_k=1000)
    compare_sample(logits, uncond, processing, some_slots(1, 1) | {"purpose": purpose}, device)


@settings(max_examples=settings.default.max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows(dtypes=(torch.float32, torch.bfloat16, torch.float16), largest_vocab=40), st.sampled_from(PURPOSES))
def test_whatever_the_shapes_dtypes_and_settings(device, case, purpose):
    logits, uncond, processing, arguments = case
    position = arguments["position"][:, None] + torch.arange(logits.shape[1])
    settings_ = {"seeds": arguments["seeds"], "iteration": arguments["iteration"], "position": position, "purpose": purpose}
    compare_sample(logits, uncond, processing, settings_, device, excused=position.numel())


def test_no_rows_give_no_ids(device):
    logits, uncond, processing, _ = random_window(1, 1, 7)
    slots = {name: to(value, device) for name, value in some_slots(1, 0).items()}
    empty = sample(to(logits[:, :0], device), uncond, to(processing, device), backend="triton", **slots)
    assert empty.shape == (1, 0)
