"""Which logits processors the ops take over, and which are left to come before them."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitNormalization,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from sjd2.generation.folding import Guidance, fold


def guidance(scale=2.0):
    return UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, None)


def names(sampling):
    return [type(one).__name__ for one in sampling.before]


def test_what_generate_puts_into_its_list_is_taken_over():
    processors = [
        guidance(), NoBadWordsLogitsProcessor([[4]]), SuppressTokensLogitsProcessor([2, 3]), TemperatureLogitsWarper(0.5), TopKLogitsWarper(7),
        TopPLogitsWarper(0.9), LogitNormalization(),
    ]  # fmt: skip
    sampling = fold(processors, greedy=False)
    assert sampling.before == []
    assert (sampling.guidance_scale, sampling.temperature, sampling.top_k, sampling.top_p) == (2.0, 0.5, 7, 0.9)
    assert sorted(sampling.suppressed) == [2, 3, 4]
    greedy = fold(processors, greedy=True)
    assert (greedy.guidance_scale, greedy.temperature, greedy.top_k, greedy.top_p) == (2.0, 0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("processors", "before"),
    [
        ([TopKLogitsWarper(3), TemperatureLogitsWarper(0.5)], ["TopKLogitsWarper"]),
        ([TopPLogitsWarper(0.9), TopKLogitsWarper(3)], ["TopPLogitsWarper"]),
        ([TemperatureLogitsWarper(0.5), TemperatureLogitsWarper(0.5)], ["TemperatureLogitsWarper"]),
        ([TemperatureLogitsWarper(0.5), SuppressTokensLogitsProcessor([1])], ["TemperatureLogitsWarper"]),
        ([TemperatureLogitsWarper(0.5), MinPLogitsWarper(0.1)], ["TemperatureLogitsWarper", "MinPLogitsWarper"]),
        ([MinPLogitsWarper(0.1), LogitNormalization(), TopKLogitsWarper(3)], ["MinPLogitsWarper"]),
        ([guidance(), RepetitionPenaltyLogitsProcessor(1.5), TopKLogitsWarper(3)], ["Guidance", "RepetitionPenaltyLogitsProcessor"]),
        ([RepetitionPenaltyLogitsProcessor(1.5), guidance(), TopKLogitsWarper(3)], ["RepetitionPenaltyLogitsProcessor"]),
        ([NoBadWordsLogitsProcessor([[4], [1, 2]])], ["NoBadWordsLogitsProcessor"]),
        ([TopPLogitsWarper(0.9, min_tokens_to_keep=2)], ["TopPLogitsWarper"]),
        ([TopPLogitsWarper(0.0)], ["TopPLogitsWarper"]),
        ([TopKLogitsWarper(3, filter_value=-5.0)], ["TopKLogitsWarper"]),
    ],
)
def test_order_decides(processors, before):
    assert names(fold(processors, greedy=False)) == before


def test_guidance_that_comes_before_is_not_done_twice():
    sampling = fold([guidance(), RepetitionPenaltyLogitsProcessor(1.5)], greedy=False)
    assert sampling.guidance == Guidance(2.0)
    assert sampling.guidance_scale == 1.0
    assert fold([guidance(1.0)], greedy=False).guidance is None


def test_guided_scores_are_those_of_hugging_face():
    scores, uncond = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    scores[0, 4] = uncond[0, 4] = -torch.inf
    own = guidance(1.7)
    own.get_unconditional_logits = lambda _: uncond[:, None]
    expected = own(torch.zeros(3, 1, dtype=torch.int64), scores)
    expected[0, 4] = -torch.inf  # Hugging Face: NaN
    assert torch.equal(Guidance(1.7)(scores, uncond), expected)


def test_what_cannot_be_is_refused():
    watermark = SynthIDTextWatermarkLogitsProcessor(
        ngram_len=3, keys=[1, 2], sampling_table_size=16, sampling_table_seed=0, context_history_size=4, device="cpu"
    )
    with pytest.raises(ValueError, match=r"^logits_processor: expected functions of the tokens so far, got SynthID"):
        fold([watermark], greedy=False)
    with pytest.raises(ValueError, match=r"^logits_processor: expected at most one that guides, got 2"):
        fold([guidance(), guidance()], greedy=False)
    with pytest.raises(ValueError, match=r"^logits_processor: expected a logits processor, got 3"):
        fold([3], greedy=False)
