"""The loop that ours is timed beside is right: greedy it gives the model's own tokens, and its samples have the law of AR sampling."""

from __future__ import annotations

import pytest
import torch
from published_loop import published_sjd
from scipy.stats import chisquare

from support.llama import FIRST_IMAGE_ID, IMAGE_IDS, random_llama

IDS = range(FIRST_IMAGE_ID, FIRST_IMAGE_ID + IMAGE_IDS)
PROMPTS = torch.tensor([[1, 2, 3], [1, 0, 3]])


@pytest.fixture(scope="module")
def model():
    return random_llama()


@pytest.mark.parametrize("window", [1, 2, 7, 40])
def test_with_one_id_left_it_is_greedy(model, window):
    run = published_sjd(model, PROMPTS, IDS, 20, window, top_k=1)
    expected = published_sjd(model, PROMPTS, IDS, 20, 1, top_k=1)
    assert torch.equal(run.ids, expected.ids)
    assert expected.forwards == 20
    assert run.forwards <= 20
    assert 0 < run.forward_seconds < run.seconds
    own, ids = model, PROMPTS
    for token in run.ids.tolist():
        conditional, unconditional = own(input_ids=ids).logits[:, -1]
        scores = unconditional + 3 * (conditional - unconditional)
        assert int(scores[IDS.start : IDS.stop].argmax()) + IDS.start == token
        ids = torch.cat([ids, torch.tensor([[token], [token]])], dim=1)


def test_its_second_token_has_the_law_of_ar_sampling(model):
    torch.manual_seed(0)
    few = range(IDS.start, IDS.start + 3)
    counts = torch.zeros(3, 3)
    for _ in range(1500):
        first, second = published_sjd(model, PROMPTS, few, 2, 3).ids - few.start
        counts[first, second] += 1
    joint = torch.zeros(3, 3, dtype=torch.float64)
    for first in range(3):
        ids = torch.cat([PROMPTS, torch.tensor([[few.start + first]] * 2)], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, -2:, few.start : few.stop]
        p = (logits[1] + 3 * (logits[0] - logits[1])).softmax(-1)
        joint[first] = p[0, first] * p[1]
    assert chisquare(counts.flatten(), 1500 * joint.flatten()).pvalue > 1e-6
