"""A caption that tuning leaves out is what guidance's other branch is of it in decoding, in every family."""

from __future__ import annotations

import pytest
import torch

from sjd2.training import NoiseCollator, TuningNoise
from support.families import FAMILIES, family_adapter

CAPTIONS = ["a cat", "two red dogs in the snow"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_fed_what_decoding_feeds_it(family, tmp_path):
    adapter = family_adapter(family, tmp_path / family)
    tokens = adapter.layout(1).forced[0].clamp(min=0)
    examples = [{"prompt": caption, "tokens": tokens, "seed": 0, "dropped": dropped} for caption in CAPTIONS for dropped in (False, True)]
    batch = NoiseCollator(adapter, TuningNoise(windows=1, window=4))(examples)
    decoding = adapter.prompt(CAPTIONS, ["", ""])
    expected = [decoding.embeds[row, : decoding.lengths[row]] for row in (0, 2, 1, 3)]
    with torch.no_grad():
        found = [adapter.embed_ids(ids[mask > 0][None])[0] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
