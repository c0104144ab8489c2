"""Finished rows leave the batch, and nobody notices but the clock; every cache and back-end gives the same tokens."""

from __future__ import annotations

import pytest
import torch

from sjd2.cache import CACHES, PagedCache, RaggedCache
from sjd2.decoding import PRESETS, TokenLayout, decode, resolve_preset
from sjd2.decoding.compaction import _kept_rows
from sjd2_kernels import LogitsProcessing
from sjd2_kernels.backends import use_backend
from sjd2_kernels.compiled import obstacle
from support.llama import random_llama, random_prompt, sliced

LENGTHS = [24, 3, 11, 18, 5, 24, 7]
BACKENDS = ["torch", *(["native"] if obstacle("cpu") is None else [])]


class Watched:
    """The adapter, with the number of model rows of every forward and the cache it was given."""

    def __init__(self, adapter):
        self.adapter, self.rows, self.cache = adapter, [], None

    def __getattr__(self, name):
        return getattr(self.adapter, name)

    def forward(self, inputs_embeds, cache, **outputs):
        self.rows.append(len(inputs_embeds))
        self.cache = cache
        return self.adapter.forward(inputs_embeds, cache, **outputs)


@pytest.fixture
def model() -> Watched:
    return Watched(sliced(random_llama()))


def run(model, method, *, guided=True, **settings):
    rows = len(LENGTHS)
    prompt, _ = random_prompt(model, [3, 1, 6, 2, 4, 1, 5] + [2, 2, 4, 1, 3, 2, 1] * guided)
    forced = torch.full((rows, 24), -1)
    forced[::2, 5::6] = 7
    processing = {"temperature": [0.7 + row / 10 for row in range(rows)], "top_k": [20, 0, 5, 9, 31, 2, 0], "top_p": [1.0, 0.9] * 3 + [0.8]}
    return decode(
        model,
        prompt,
        TokenLayout(forced, torch.tensor(LENGTHS), row_stride=6),
        LogitsProcessing.create(rows, guidance_scale=[1 + row / 5 for row in range(rows)] if guided else 1.0, **processing),
        resolve_preset(method),
        torch.arange(rows) * 1234567,
        **settings,
    )


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("method", list(PRESETS))
def test_tokens_and_reports_are_those_of_the_whole_batch(model, method, guided):
    whole = run(model, method, guided=guided, compact=False)
    assert set(model.rows) == {len(LENGTHS) * (1 + guided)}
    model.rows.clear()
    shrinking = run(model, method, guided=guided)
    assert torch.equal(shrinking.tokens, whole.tokens)
    for one, other in zip(shrinking.rows, whole.rows, strict=True):
        assert (one.tokens, one.forwards, one.accepted) == (other.tokens, other.forwards, other.accepted)
    sizes = [rows // (1 + guided) for rows in model.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) <= {len(LENGTHS), 4, 2, 1}
    assert sizes[-1] <= 2, "most rows have left by the end"


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ar", "jacobi", "mc-sjd"])
def test_every_cache_and_backend_gives_the_same_tokens(model, method, cache, backend):
    with use_backend("torch"):
        expected = run(model, method, compact=False)
    with use_backend(backend):
        result = run(model, method, cache=cache)
    assert type(model.cache) is CACHES[cache]
    assert torch.equal(result.tokens, expected.tokens)
    assert [row.forwards for row in result.rows] == [row.forwards for row in expected.rows]


@pytest.mark.parametrize("poll_every", [1, 4, 1000])
def test_progress_shows_all_rows_in_their_order(model, poll_every):
    seen = []
    whole = run(model, "mc-sjd", compact=False, callback=lambda progress: seen.append((progress.committed.tolist(), progress.tokens.clone())))
    number = 0

    def compare(progress):
        nonlocal number
        committed, tokens = seen[min(number, len(seen) - 1)]  # a host that looks rarely sees the end late
        number += 1
        assert progress.iteration == number
        assert progress.totals.tolist() == LENGTHS
        assert progress.committed.tolist() == committed
        for row, count in enumerate(committed):
            assert torch.equal(progress.tokens[row, :count], tokens[row, :count])

    result = run(model, "mc-sjd", callback=compare, poll_every=poll_every)
    assert number >= len(seen)
    assert torch.equal(result.tokens, whole.tokens)


def test_a_row_that_fails_after_others_have_left_is_named_by_its_place_in_the_batch(model):
    seeds_seen = []
    poisoned = {"from": 8}
    forward = model.adapter.forward

    def poison(inputs_embeds, cache, **outputs):
        logits = forward(inputs_embeds, cache, **outputs)
        seeds_seen.append(len(inputs_embeds))
        if len(seeds_seen) > poisoned["from"]:
            logits[len(logits) // 2 - 1 if len(inputs_embeds) > 2 else 0] = torch.nan
        return logits

    model.adapter.forward = poison
    with pytest.raises(FloatingPointError, match=r"in row 5 within iteration"):
        run(model, "ar")
    assert seeds_seen[-1] < seeds_seen[0]


def test_finished_rows_fill_up_to_the_next_power_of_two():
    assert _kept_rows([3, 1, 2]) is None
    assert _kept_rows([0, 1, 0, 0, 2, 0, 3, 0]) == [0, 1, 4, 6]
    assert _kept_rows([0, 0, 5, 0]) == [2]
    assert _kept_rows([0, 2, 1, 5]) is None
    assert _kept_rows([1]) is None


def test_an_unknown_cache_is_named(model):
    with pytest.raises(ValueError, match="cache: expected one of ragged, paged, got 'dense'"):
        run(model, "ar", cache="dense")


def test_a_row_without_room_is_an_error(model):
    model.new_cache = lambda rows, capacity, kind: kind(2, rows, 20)
    with pytest.raises(ValueError, match="lengths: expected at most"):
        run(model, "ar")


def test_a_row_that_a_gpu_had_to_leave_alone_is_an_error(model):
    """On a GPU nothing raises at the append: the flag does, when the host looks."""

    class Full(RaggedCache):
        def commit(self, counts):
            super().commit(counts)
            self.overflow[2] = True

    model.new_cache = lambda rows, capacity, kind: Full(2, rows, capacity)
    with pytest.raises(RuntimeError, match="cache: expected room for every row's window, got none for row 2"):
        run(model, "ar")


def test_pages_come_back_when_rows_are_finished_and_a_pool_may_be_smaller_than_the_batch(model):
    caches = []

    def new_cache(rows, capacity, kind):
        caches.append(PagedCache(2, rows, capacity, page_size=4, pages=50))
        return caches[-1]

    model.new_cache = new_cache
    expected = run(Watched(model.adapter), "ar", guided=False)
    result = run(model, "ar", guided=False, cache="paged")
    assert torch.equal(result.tokens, expected.tokens)
    rows = caches[0]._rows
    assert rows.pages < len(LENGTHS) * rows.max_pages
    held = rows.block_table[rows.block_table >= 0].tolist()
    assert sorted(held + rows.free_list[1 : 1 + rows.free_list[0]].tolist()) == list(range(50))
    with torch.inference_mode():
        caches[0].reset()
    assert rows.free_list[0] == 50


@pytest.mark.parametrize("kind", list(CACHES.values()))
def test_a_cache_keeps_the_rows_it_is_told_to_keep(kind):
    cache = kind(2, 3, 8)
    states = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 4, 2)
    for layer in cache.layers:
        layer.update(states, states + 10)
    cache.commit(torch.tensor([1, 2, 3]))
    cache.compact(torch.tensor([2, 0]))
    assert cache.lengths.tolist() == [3, 1]
    keys, values = cache.layers[1].update(states[:2] + 50, states[:2] + 60)
    for row, (source, length) in enumerate([(2.0, 3), (0.0, 1)]):
        assert keys[row, 0, :length, 0].tolist() == [source] * length
        assert values[row, 0, :length, 0].tolist() == [source + 10] * length
        assert keys[row, 0, length : length + 4, 0].tolist() == [50.0 + row] * 4
