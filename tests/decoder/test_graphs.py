"""Iterations recorded and replayed: the tokens of the loop.

Without a GPU the recorder is a trace (``support/tape.py``).
"""

from __future__ import annotations

import warnings

import pytest
import torch

from sjd2.attention import choice, interface
from sjd2.cache import CACHES
from sjd2.decoding import PRESETS, loop
from sjd2.decoding.graphs import Graphed
from sjd2_kernels import verify, window_attention
from support.llama import random_llama, sliced
from support.tape import Tape

from .test_compaction import LENGTHS, Watched, run


@pytest.fixture
def model() -> Watched:
    return Watched(sliced(random_llama()))


def same(result, expected):
    assert torch.equal(result.tokens, expected.tokens)
    for one, other in zip(result.rows, expected.rows, strict=True):
        assert (one.tokens, one.forwards, one.accepted) == (other.tokens, other.forwards, other.accepted)


QUICK = ("jacobi", "mc-sjd", "sjd2")
METHODS = [pytest.param(method, marks=() if method in QUICK else pytest.mark.full) for method in PRESETS]


@pytest.mark.parametrize("method", METHODS)
def test_the_tokens_are_those_of_the_loop(model, method):
    expected = run(model, method)
    tape = Tape()
    model.rows.clear()
    result = run(model, method, graphs=tape, poll_every=3)
    same(result, expected)
    assert all(row.forward_seconds is None for row in result.rows)
    assert tape.replays > tape.recordings
    if method in ("ar", "jacobi"):
        assert len(model.rows) < tape.replays, "a replay does not run the model's Python"


@pytest.mark.parametrize(("method", "cache"), [("ar", "ragged"), ("mc-sjd", "paged"), ("sjd2", "ragged")])
def test_rows_that_are_admitted_take_places_in_the_graphs(model, method, cache):
    expected = run(model, method)
    tape = Tape()
    result = run(model, method, batch_size=3, cache=cache, graphs=tape)
    same(result, expected)
    sizes = 3 - 1  # three rows, then two, then one: of the last size there may be no second iteration
    assert sizes <= tape.recordings <= 3 * 8


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("method", ["mc-sjd", "sjd2"])
def test_attention_of_valid_columns_is_recorded(model, method, cache, monkeypatch):
    """Lengths, levels and pages that layers are told of are those of the moment, not of the recording."""
    monkeypatch.setattr(choice, "obstacle", lambda *arguments, **named: None)
    monkeypatch.setattr(interface, "window_attention", lambda *a, backend, **named: window_attention(*a, backend="torch", **named))
    expected, tape = run(model, method), Tape()
    result = run(model, method, batch_size=3, cache=cache, graphs=tape, attention="triton")
    same(result, expected)
    assert result.attention == "triton"
    assert tape.replays > tape.recordings


def test_a_number_of_columns_is_a_graph(model, monkeypatch):
    tape = Tape()
    graphs = Graphed(tape, 2500)
    assert graphs.columns == 320
    assert Graphed(tape, 40).columns == 64
    run(model, "ar", guided=False, graphs=tape, compact=False)
    assert tape.recordings == 1
    assert tape.replays == max(LENGTHS) - 2, "neither the first iteration of a run is recorded, which has no last forward, nor the next"

    class Narrow(Graphed):
        """Counts columns more finely."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.columns = 8

    tape = Tape()
    monkeypatch.setattr("sjd2.decoding.run.Graphed", Narrow)
    run(model, "ar", guided=False, graphs=tape, compact=False)
    assert 1 < tape.recordings <= 5
    assert tape.replays == max(LENGTHS) - 1 - tape.recordings, "nor is the next one of any number of columns"


def test_nothing_is_recorded_that_has_not_run_before(model, monkeypatch):
    """A kernel that is compiled or loaded while a stream is recorded may end the recording."""
    kinds, recorded = set(), []

    def told(*arguments, **named):
        kind = (len(arguments[0]), named["last"] is None)
        (recorded.append(kind in kinds) if told.recording else kinds.add(kind))
        return verify(*arguments, **named)

    def record(work):
        told.recording = True
        replay = Tape()(work)
        replay()
        told.recording = False
        # The state is at its next iteration now, where the loop expects it after this replay.
        replays = iter([lambda: None])
        return lambda: next(replays, replay)()

    told.recording = False
    monkeypatch.setattr(loop, "verify", told)
    run(model, "jacobi", graphs=record, batch_size=3)
    assert len(recorded) >= 2
    assert all(recorded)


def test_what_cannot_be_recorded_runs_all_the_same(model):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = run(model, "mc-sjd")
    with pytest.warns(UserWarning, match="graphs: iterations run one operation after the other, .* operation not permitted"):
        result = run(model, "mc-sjd", graphs=refuse)
    same(result, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, "mc-sjd", graphs=False)


def test_graphs_need_a_gpu_and_no_python_between(model):
    with pytest.raises(ValueError, match="graphs: expected a GPU, got seeds on cpu"):
        run(model, "ar", graphs=True)

    class Rules:
        numbered = False

    with pytest.raises(ValueError, match="graphs: expected False with rules, which run in Python"):
        run(model, "ar", graphs=Tape(), rules=Rules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("cache", "attention"), [("ragged", "model"), ("ragged", "triton"), ("paged", "triton")])
@pytest.mark.parametrize("method", list(PRESETS))
def test_cuda_graphs_give_the_tokens_of_the_loop(method, cache, attention):
    from sjd2 import TextToImagePipeline

    pipeline = TextToImagePipeline.from_pretrained(device="cuda", dtype=torch.float32)
    prompts = ["a red coat on a yellow background", "a teal boot on a pink background", "a black bag on a blue background"]
    how = {"method": method, "batch_size": 2, "cache": cache, "attention": attention}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphed = pipeline(prompts, **how, graphs=True)
    eager = pipeline(prompts, **how, graphs=False)
    assert torch.equal(graphed.tokens, eager.tokens)
