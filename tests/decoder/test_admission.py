"""Waiting rows take the places of finished ones: the tokens are those of all rows together, and each row is reported once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sjd2.cache import CACHES, PagedCache
from sjd2.decoding import PRESETS
from sjd2_kernels.backends import use_backend
from support.llama import random_llama, sliced

from .test_compaction import BACKENDS, LENGTHS, Watched, run


@pytest.fixture
def model() -> Watched:
    return Watched(sliced(random_llama()))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("method", list(PRESETS))
def test_tokens_and_reports_are_those_of_the_whole_batch(model, method, guided, batch_size):
    whole = run(model, method, guided=guided)
    model.rows.clear()
    done = {}
    streamed = run(model, method, guided=guided, batch_size=batch_size, finished=lambda row, tokens, report: done.setdefault(row, (tokens, report)))
    assert torch.equal(streamed.tokens, whole.tokens)
    for row, (one, other) in enumerate(zip(streamed.rows, whole.rows, strict=True)):
        assert (one.tokens, one.forwards, one.accepted) == (other.tokens, other.forwards, other.accepted)
        assert torch.equal(done[row][0], whole.tokens[row, : other.tokens])
        assert done[row][1] == one
    assert max(model.rows) == batch_size * (1 + guided), "never more rows than places"
    assert len(done) == len(LENGTHS)


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poll_every", [1, 5, 1000])
def test_every_cache_and_however_rarely_the_host_looks(model, cache, backend, poll_every):
    whole = run(model, "mc-sjd")
    with use_backend(backend):
        streamed = run(model, "mc-sjd", batch_size=2, cache=cache, poll_every=poll_every)
    assert torch.equal(streamed.tokens, whole.tokens)
    assert [row.forwards for row in streamed.rows] == [row.forwards for row in whole.rows]


def test_a_place_is_taken_as_soon_as_it_is_free(model):
    """Rows one after the other in two places need the forwards of the longer of two queues, not of batches that wait for their slowest."""
    model.rows.clear()
    run(model, "ar", guided=False, batch_size=2)
    forwards = len(model.rows) - len(LENGTHS) + 1  # the first prompts run together, the others alone
    ends, busy = [0, 0], 0
    for length in LENGTHS:
        place = ends.index(min(ends))
        ends[place] += length
        busy = max(ends)
    assert busy <= forwards <= busy + len(LENGTHS)
    assert forwards < sum(max(pair) for pair in zip(LENGTHS[::2], [*LENGTHS[1::2], 0], strict=True))


def test_pages_of_finished_rows_serve_the_next(model):
    """A pool that holds two rows at full length is enough for seven."""
    caches = []

    def new_cache(rows, capacity, kind):
        if kind is not PagedCache:
            return kind(2, rows, capacity)
        caches.append(PagedCache(2, rows, capacity, page_size=4, pages=2 * -(-capacity // 4)))
        return caches[-1]

    expected = run(model, "mc-sjd", guided=False)
    model.new_cache = new_cache
    result = run(model, "mc-sjd", guided=False, batch_size=2, cache="paged")
    assert torch.equal(result.tokens, expected.tokens)
    rows = caches[0]._rows
    held = rows.block_table[rows.block_table >= 0].tolist()
    assert sorted(held + rows.free_list[1 : 1 + rows.free_list[0]].tolist()) == list(range(rows.pages)), "no page is lost or in two places"


def test_progress_shows_all_rows(model):
    seen = []
    run(model, "mc-sjd", batch_size=2, callback=lambda progress: seen.append(progress.committed.tolist()))
    assert seen[-1] == LENGTHS
    assert seen[0][2:] == [0] * (len(LENGTHS) - 2)
    assert all(after >= before for one, two in pairwise(seen) for before, after in zip(one, two, strict=True))


def test_bad_sizes_are_refused(model):
    with pytest.raises(ValueError, match="batch_size: expected a whole number >= 1, got 0"):
        run(model, "ar", batch_size=0)

    class Rules:
        numbered = True

    with pytest.raises(ValueError, match="batch_size: rules that know rows by their numbers need all 7 rows together, got 3"):
        run(model, "ar", batch_size=3, rules=Rules())


def test_an_error_leaves_a_model_that_decodes_as_before(model):
    """An exception in a callback, and running out of memory: nothing of the run is left behind."""
    expected = run(model, "mc-sjd")

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.iteration == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(model, "mc-sjd", callback=stop)
    forward, calls = model.adapter.forward, []

    def no_memory(*arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no memory left")
        return forward(*arguments, **options)

    model.adapter.forward = no_memory
    with pytest.raises(torch.OutOfMemoryError):
        run(model, "mc-sjd", batch_size=3)
    model.adapter.forward = forward
    assert torch.equal(run(model, "mc-sjd").tokens, expected.tokens)
