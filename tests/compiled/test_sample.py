"""The compiled ``sample`` for CPUs against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2_kernels import Purpose, compiled, sample
from support.fused import compare_sample, random_window, some_slots
from support.windows import windows

PURPOSES = [Purpose.DRAFT, Purpose.GUMBEL]
pytestmark = pytest.mark.skipif(compiled.obstacle("cpu") is not None, reason=f"{compiled.obstacle('cpu')}")


def compare(*case, **excused):
    return compare_sample(*case, "cpu", backend="cpp", **excused)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("vocab", [1, 97, 1000, 2500])
def test_ids_are_those_of_the_definition(purpose, vocab):
    logits, uncond, processing, _ = random_window(3, 40, vocab, dtype=torch.bfloat16, guided=True, top_k=[0, 30, 1], temperature=[1, 0.5, 2])
    compare(logits, uncond, processing, some_slots(3, 40) | {"purpose": purpose})


@pytest.mark.parametrize("purpose", PURPOSES)
def test_one_row_of_logits_serves_many_slots(purpose):
    logits, uncond, processing, _ = random_window(2, 1, 700, top_k=20)
    got = compare(logits, uncond, processing, some_slots(2, 9) | {"purpose": purpose})
    assert got.shape == (2, 9)
    assert got.unique().numel() > 2


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_large_vocabulary(purpose):
    logits, uncond, processing, _ = random_window(1, 1, 65_537, dtype=torch.float16, top_k=1000)
    compare(logits, uncond, processing, some_slots(1, 1) | {"purpose": purpose})


@given(windows(dtypes=(torch.float32, torch.bfloat16, torch.float16), largest_vocab=40), st.sampled_from(PURPOSES))
def test_whatever_the_shapes_types_and_settings(case, purpose):
    logits, uncond, processing, arguments = case
    position = arguments["position"][:, None] + torch.arange(logits.shape[1])
    chosen = {"seeds": arguments["seeds"], "iteration": arguments["iteration"], "position": position, "purpose": purpose}
    compare(logits, uncond, processing, chosen, excused=position.numel())


@pytest.mark.parametrize("purpose", PURPOSES)
def test_logits_without_a_distribution_give_ids_in_range(purpose):
    logits = torch.tensor([[[torch.nan, 1, 2], [torch.inf, 1, 2], [-torch.inf] * 3]])
    processing = random_window(1, 1, 3)[2]
    ids = sample(logits, None, processing, backend="cpp", **some_slots(1, 3), purpose=purpose)
    assert ((ids >= 0) & (ids < 3)).all()
