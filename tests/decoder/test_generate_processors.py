"""Logits processors and stopping criteria through ``sjd2.generate``: the same tokens as in the model's own ``generate``."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, MinPLogitsWarper, StoppingCriteria, StoppingCriteriaList

import sjd2
from support.door import VOCABULARY, both, frozen


class OnlyAfter(LogitsProcessor):
    """A rule of the user's: an even id follows only an odd one."""

    def __call__(self, input_ids, scores):
        even = torch.arange(scores.shape[-1]) % 2 == 0
        return scores.masked_fill(even & (input_ids[:, -1:] % 2 == 0), -torch.inf)


PER_SLOT = {
    "repetition_penalty": {"repetition_penalty": 1.6},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": [7, 21, 30]},
    "forced_eos": {"forced_eos_token_id": 9},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(1, 30))},
    "bad_words": {"bad_words_ids": [[3, 4], [5], [11, 12, 13]]},
    "sequence_bias": {"sequence_bias": [[[8], 4.0], [[9, 10], 9.0]]},
    "decay": {"exponential_decay_length_penalty": (3, 1.2), "eos_token_id": 7},
    "the user's": {"logits_processor": LogitsProcessorList([OnlyAfter()])},
    "guided and penalised": {"repetition_penalty": 1.6, "guidance_scale": 2.0},
    "a prefix's": {"prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) + step + row) % VOCABULARY for step in (1, 2, 3)]},
}


@pytest.mark.parametrize("name", PER_SLOT)
def test_processors_that_look_back_are_applied_to_every_slot(model, inputs, name):
    own, ours = both(model, inputs, do_sample=False, max_new_tokens=18, **PER_SLOT[name])
    assert torch.equal(own, ours)
    own, ours = frozen(model, inputs, max_new_tokens=18, **PER_SLOT[name])
    assert torch.equal(own, ours)


@pytest.mark.parametrize("method", ["sjd", "mc-sjd", "gs-sjd"])
def test_processors_that_look_back_hold_for_every_method(model, inputs, method):
    own, ours = both(model, inputs, method=method, do_sample=False, max_new_tokens=18, repetition_penalty=1.6)
    assert torch.equal(own, ours)
    odd = both(model, inputs, method=method, do_sample=True, max_new_tokens=30, logits_processor=LogitsProcessorList([OnlyAfter()]))[1]
    following = odd[:, 6:].unfold(1, 2, 1)
    assert not (following % 2 == 0).all(-1).any()


def test_a_constraint_that_knows_only_its_own_prefixes_is_not_asked_about_others_in_vain(model, inputs):
    """Drafts break it; what it says, or raises, of them does not matter."""
    path = [4, 9, 2, 31, 17, 5, 6, 8, 22, 23]

    def along(row, ids):
        done = ids[7:].tolist()
        if done != path[: len(done)]:
            raise KeyError(done)
        return path[len(done) : len(done) + 1]

    own, ours = both(model, inputs, do_sample=False, max_new_tokens=10, prefix_allowed_tokens_fn=along)
    assert torch.equal(own, ours)
    assert ours[:, 7:].tolist() == [path] * 3


def test_an_error_about_committed_tokens_is_raised(model, inputs):
    def never(row, ids):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=4, prefix_allowed_tokens_fn=never)


class NothingAfter(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf) if input_ids.shape[1] >= 10 else scores


def test_a_processor_that_leaves_no_id_is_an_error(model, inputs):
    with pytest.raises(FloatingPointError, match=r"^logits"):
        model.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=9, logits_processor=LogitsProcessorList([NothingAfter()]))


def test_it_says_once_what_is_applied_slot_by_slot(model, inputs):
    settings = {"custom_generate": sjd2.generate, "max_new_tokens": 2, "seed": 0}
    with pytest.warns(UserWarning, match=r"logits_processor: RepetitionPenaltyLogitsProcessor, MinPLogitsWarper applied to every slot"):
        model.generate(**inputs, do_sample=True, repetition_penalty=1.5, logits_processor=LogitsProcessorList([MinPLogitsWarper(0.1)]), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "suppress_tokens": [3, 4], "bad_words_ids": [[5]], "renormalize_logits": True}
        model.generate(**inputs, do_sample=True, guidance_scale=2.0, **folded, **settings)


def test_suppressed_ids_are_never_drawn(model, inputs):
    suppressed = list(range(1, VOCABULARY, 2))
    own, ours = both(model, inputs, do_sample=False, max_new_tokens=12, suppress_tokens=suppressed)
    assert torch.equal(own, ours)
    sampled = both(model, inputs, method="mc-sjd", do_sample=True, max_new_tokens=30, suppress_tokens=suppressed)[1]
    assert (sampled[:, 7:] % 2 == 0).all()


class EndsIn(StoppingCriteria):
    """Fires where the last two ids add up to more than ``total``."""

    def __init__(self, total):
        self.total = total

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -2:].sum(1) > self.total


@pytest.mark.parametrize("total", [55, 65, 70])
@pytest.mark.parametrize("method", ["ar", "jacobi", "mc-sjd"])
def test_rows_end_where_a_criterion_first_fires(model, inputs, method, total):
    free = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    with pytest.warns(UserWarning, match=r"stopping_criteria: EndsIn"):
        ours = model.generate(
            **inputs, custom_generate=sjd2.generate, method=method, do_sample=False, max_new_tokens=30,
            stopping_criteria=StoppingCriteriaList([EndsIn(total)]), return_dict_in_generate=True,
        )  # fmt: skip
    lengths = []
    for row in free[:, 6:].tolist():
        fired = [place for place in range(1, 31) if row[place - 1] + row[place] > total]
        lengths.append(fired[0] if fired else 30)
    assert [row.tokens for row in ours.statistics] == lengths
    expected = torch.zeros(3, max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        expected[row, :length] = free[row, 7 : 7 + length]
    assert torch.equal(ours.sequences[:, 7:], expected)


class NothingBehind(LogitsProcessor):
    """Of constraint libraries: no id is possible behind an end, or asking is an error."""

    def __init__(self, ends, error=False):
        self.ends, self.error = torch.tensor(ends), error

    def __call__(self, input_ids, scores):
        ended = torch.isin(input_ids[:, 7:], self.ends).any(1)
        if self.error and ended.any():
            raise RuntimeError("behind the end")
        return scores.masked_fill(ended[:, None], -torch.inf)


class EndsWith(StoppingCriteria):
    def __init__(self, ends):
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.ends)


@pytest.mark.filterwarnings("ignore:logits_processor")
@pytest.mark.filterwarnings("ignore:stopping_criteria")
@pytest.mark.parametrize("error", [False, True], ids=["nothing", "raises"])
@pytest.mark.parametrize("ends", ["ids", "criterion"])
def test_processors_that_allow_nothing_behind_the_end(model, inputs, ends, error):
    """A forward commits tokens behind the end; what processors say there is of no interest."""
    one = {name: values[2:] for name, values in inputs.items()}
    settings = {"do_sample": True, "max_new_tokens": 40, "pad_token_id": 0, "custom_generate": sjd2.generate}
    settings |= {"eos_token_id": [5, 9]} if ends == "ids" else {"stopping_criteria": [EndsWith([5, 9])]}
    settings["logits_processor"] = [NothingBehind([5, 9], error)]
    ended = 0
    for seed in range(8):
        runs = [model.generate(**one, **settings, method=method, window=window, seed=seed) for method, window in (("ar", 1), ("jacobi", 8))]
        assert torch.equal(*runs)
        ended += runs[0].shape[1] < 47
    assert ended > 2  # otherwise nothing would have been tested


class HalvesInPlace(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores *= 0.3
        return scores


class Picky(LogitsProcessor):
    """Refuses prefixes that drafts make up, and that never come about."""

    def __call__(self, input_ids, scores):
        if (input_ids[:, 7:] == 9).any():
            raise RuntimeError("an unknown prefix")
        scores[:, 9] = -torch.inf
        return scores


class CountedPath(LogitsProcessor):
    """Knows one path, and raises for any prefix beside it; counts how many rows it was asked about."""

    path = (4, 9, 2, 31, 17, 5, 6, 8, 22, 23)

    def __init__(self):
        self.rows = []

    def __call__(self, input_ids, scores):
        self.rows.append(len(input_ids))
        for row, ids in enumerate(input_ids[:, 7:].tolist()):
            if tuple(ids) != self.path[: len(ids)]:
                raise KeyError(ids)
            allowed = self.path[len(ids)]
            scores[row, :allowed], scores[row, allowed + 1 :] = -torch.inf, -torch.inf
        return scores


@pytest.mark.filterwarnings("ignore:logits_processor")
@pytest.mark.parametrize("method", ["jacobi", "mc-sjd"])
def test_a_processor_that_raises_on_drafts_is_asked_about_every_row_once(model, inputs, method):
    six = {name: values.repeat(2, 1) for name, values in inputs.items()}
    counted = CountedPath()
    settings = {"do_sample": True, "max_new_tokens": 10, "window": 8, "seed": 1, "return_dict_in_generate": True}
    output = model.generate(**six, **settings, custom_generate=sjd2.generate, method=method, logits_processor=[counted])
    assert output.sequences[:, 7:].tolist() == [list(CountedPath.path)] * 6
    forwards = max(row.forwards for row in output.statistics)
    first = counted.rows.index(1)  # until it raises it is given all rows at once
    assert set(counted.rows[:first]) == {6}
    assert set(counted.rows[first:]) == {1}
    assert len(counted.rows) - first <= 6 * 8 * forwards
    # A row whose draft left the path is not asked about again in this window: of the drafts behind it nothing may come.
    assert len(counted.rows) - first < 6 * 3 * forwards


@pytest.mark.filterwarnings("ignore:logits_processor")
def test_processors_that_work_in_place_are_applied_once(model, inputs):
    settings = {"do_sample": True, "max_new_tokens": 30, "logits_processor": [HalvesInPlace(), Picky()], "custom_generate": sjd2.generate}
    for seed in range(6):
        runs = [model.generate(**inputs, **settings, method=method, window=window, seed=seed) for method, window in (("ar", 1), ("jacobi", 8))]
        assert torch.equal(*runs)


def test_a_processor_list_may_be_plain(model, inputs):
    own = model.generate(**inputs, do_sample=False, max_new_tokens=6, logits_processor=[OnlyAfter()])
    with pytest.warns(UserWarning, match="OnlyAfter"):
        assert torch.equal(sjd2.generate(model, **inputs, do_sample=False, max_new_tokens=6, logits_processor=[OnlyAfter()]), own)
