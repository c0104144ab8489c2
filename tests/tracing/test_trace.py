"""Traces: what is written down of a run, and what is read from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sjd2.decoding import PRESETS, Progress, TokenLayout, decode, resolve_preset
from sjd2.pipeline import ImageReport, PipelineOutput
from sjd2.tracing import Recorder, Trace, slot_states, traces_of
from sjd2_kernels import LogitsProcessing
from support.generic import END_IMAGE, GRID, LINE, generic_pipeline

#: The small model is not tuned.
pytestmark = pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")

PROMPTS = ["a fox", "two herons in shallow water", "a lamp", "a bee", "snow"]


@pytest.fixture(scope="module")
def small():
    return generic_pipeline()


def traced(pipeline, prompts, **settings) -> list[Trace]:
    recorder = Recorder()
    output = pipeline(prompts, callback=recorder, **settings)
    return traces_of(recorder, output, pipeline.adapter.layout(1), pipeline.adapter.grid, guidance_scale=2.0)


def made_up(**others) -> Trace:
    """Six tokens in four forwards of a window of three; the third token is structural."""
    parts = {
        "committed": np.array([1, 3, 4, 6]),
        "tokens": np.array([5, 6, 9, 7, 8, 8]),
        "structural": np.array([False, False, True, False, False, False]),
        # after each forward, what follows the committed tokens
        "drafts": np.array([[1, 9, 2], [3, 4, 4], [8, 4, -1], [-1, -1, -1]]),
        "about": {"prompt": "a fox", "method": "sjd", "seed": 1, "grid": None, "seconds": 1.0},
    }
    return Trace(**(parts | others))


def test_commits_and_changes_are_read_off_by_hand():
    trace = made_up()
    assert trace.commit_iteration().tolist() == [1, 2, 2, 3, 4, 4]
    # 0: final at once. 1: draft 1, then 6. 2: structural, 9 from the first sight on. 3: 2, 3, then 7. 4: 4, 8, stays. 5: 4, 4, then 8.
    assert trace.draft_changes().tolist() == [0, 1, 0, 2, 1, 1]
    assert (trace.forwards, trace.window) == (4, 3)


def test_states_of_slots_are_read_off_by_hand():
    trace = made_up(levels=np.array([[0, 0, 2], [0, 0, 3], [0, 0, 0], [0, 0, 0]]))
    assert slot_states(trace, 0).tolist() == [0, 0, 0, 0, 0, 0]
    assert slot_states(trace, 1).tolist() == [3, 2, 2, 1, 0, 0]
    assert slot_states(trace, 2).tolist() == [3, 3, 3, 2, 2, 1]
    assert slot_states(trace, 3).tolist() == [3, 3, 3, 3, 2, 2]
    assert slot_states(trace, 4).tolist() == [3] * 6


def test_the_grid_leaves_out_structural_tokens_drafts_before_it_and_what_never_came():
    values = np.arange(6)
    assert made_up().cells(values).tolist() == [[0, 1, 3, 4, 5]]
    assert made_up(about={"grid": [2, 2]}).cells(values).tolist() == [[1, 3], [4, 5]]  # a token before the grid
    longer = np.array([False, False, True, False, False, False, True, False])
    early = made_up(structural=longer, about={"grid": [2, 3]}).cells(values)
    assert early[0].tolist() == [0, 1, 3]
    assert early[1, :2].tolist() == [4, 5]
    assert np.isnan(early[1, 2])


@pytest.mark.parametrize("method", list(PRESETS))
def test_a_trace_holds_what_became_of_a_picture(small, method):
    (trace,) = traced(small, "a fox", method=method, seed=3)
    output = small("a fox", method=method, seed=3)
    report = output.reports[0]
    assert trace.tokens.tolist() == report.tokens
    assert trace.forwards == report.forwards
    assert trace.about["tokens_per_forward"] == report.tokens_per_forward
    assert (trace.about["prompt"], trace.about["grid"], trace.about["guidance_scale"]) == ("a fox", list(GRID), 2.0)
    assert (np.diff(trace.committed) > 0).all()
    assert trace.committed[-1] == len(trace.tokens)
    line, end = small.adapter.vocab_size, small.adapter.vocab_size + 1
    assert [END_IMAGE - LINE, int((trace.tokens == line).sum()), int((trace.tokens == end).sum())] == [1, GRID[0], 1]
    assert trace.structural.tolist() == [token >= line for token in report.tokens]
    past = trace.committed[:, None] + np.arange(trace.window) >= len(trace.tokens)
    assert ((trace.drafts == -1) == past).all()
    assert trace.cells(trace.tokens).tolist() == [[float(token) for token in report.tokens[5 * row : 5 * row + 4]] for row in range(3)]
    assert (trace.levels is not None) == (PRESETS[method].denoising is not None)
    assert trace.image.tobytes() == output.images[0].tobytes()
    changes = trace.draft_changes()
    assert changes.max() < trace.forwards
    assert not changes[trace.structural].any()


def test_drafts_that_were_kept_did_not_change(small):
    """A token that was final with the draft it had before was committed unchanged; jacobi keeps only such drafts."""
    (trace,) = traced(small, "a fox", method="jacobi", window=8, seed=3)
    start = 0
    for forward in range(1, trace.forwards):
        before, committed = trace.drafts[forward - 1], trace.committed[forward]
        newly = committed - trace.committed[forward - 1]
        kept = before[: newly - 1] == trace.tokens[trace.committed[forward - 1] : committed - 1]
        assert kept.all()  # all but the last, which may have been redrawn
        start += newly
    assert start > 0


def test_levels_fall_as_slots_come_nearer_to_the_front(pipeline):
    (trace,) = traced(pipeline, "a red coat on a yellow background", method="sjd2", seed=1)
    denoising = pipeline.adapter.denoising
    clean = PRESETS["sjd2"].denoising.clean_slots(64)
    assert trace.levels[:, :clean].max() == 0
    assert trace.levels.max() <= denoising.levels.steps
    first = int(trace.committed[0])
    moved = int(trace.committed[1]) - first
    assert (trace.levels[1, : 64 - moved] <= trace.levels[0, moved:]).all()
    assert (trace.levels[:3, clean:] > 0).any()


def test_a_picture_of_a_batch_has_the_trace_that_it_has_alone(small):
    together = traced(small, PROMPTS, method="sjd2", window=8, seed=[3, 1, 4, 1, 5], batch_size=3)
    assert len({trace.forwards for trace in together}) > 1  # rows leave at different times
    assert all(trace.levels.max() > 0 for trace in together)
    for prompt, seed, trace in zip(PROMPTS, [3, 1, 4, 1, 5], together, strict=True):
        (alone,) = traced(small, prompt, method="sjd2", window=8, seed=seed)
        for name in ("committed", "tokens", "structural", "drafts", "levels"):
            assert np.array_equal(getattr(trace, name), getattr(alone, name)), name


def test_rows_of_unequal_length_are_recorded_as_if_each_were_alone(small):
    """The short rows leave the batch long before the long one is done."""
    adapter, lengths, seeds = small.adapter, torch.tensor([2, 3, 17]), torch.tensor([3, 1, 4])
    preset = resolve_preset("sjd2", window=8)
    preset = replace(preset, denoising=replace(preset.denoising, clean=2))  # noise right behind the front

    def recording(rows: list[int]):
        recorder, layout = Recorder(), replace(adapter.layout(len(rows)), lengths=lengths[rows])
        prompt = adapter.prompt([PROMPTS[row] for row in rows], None)
        result = decode(adapter, prompt, layout, LogitsProcessing.create(len(rows)), preset, seeds[rows], callback=recorder)
        return recorder.recordings()[0], [row.forwards for row in result.rows]

    together, forwards = recording([0, 1, 2])
    assert forwards[2] > forwards[1] + 3
    assert together.levels[2, forwards[1] + 2 :].max() > 0
    for row in range(3):
        alone, (count,) = recording([row])
        assert count == forwards[row]
        for name in ("committed", "drafts", "levels"):
            before_the_last = slice(0, count - 1)  # of a finished row the window means nothing
            assert torch.equal(getattr(together, name)[row, before_the_last], getattr(alone, name)[0, before_the_last]), name


def test_what_lies_past_an_early_end_is_not_in_a_trace():
    """Two pictures of at most five tokens; the first one ended itself after three."""
    totals, tokens = torch.tensor([5, 5]), torch.tensor([[1, 2, 9, 0, 0], [1, 2, 3, 4, 5]])
    recorder = Recorder()
    drafts, levels = torch.tensor([[6, 7, 8], [6, 7, 8]]), torch.tensor([[0, 1, 2], [0, 1, 2]])
    for iteration, committed in enumerate(([1, 1], [3, 2], [3, 5]), start=1):
        recorder(Progress(iteration, torch.tensor(committed), totals, tokens, drafts, levels))
    reports = [
        ImageReport("a fox", "sjd2", 4, seed, row, forwards, 0.0, 0.0, 1.0, 0.5)
        for seed, row, forwards in ((1, [1, 2, 9], 2), (2, [1, 2, 3, 4, 5], 3))
    ]
    early, whole = traces_of(recorder, PipelineOutput([], tokens, reports), TokenLayout.grid(1, 1, 5), (1, 5))
    assert early.committed.tolist() == [1, 3]
    assert early.drafts.tolist() == [[6, 7, -1], [-1, -1, -1]]
    assert early.levels.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert np.isnan(early.cells(early.tokens)[0, 3:]).all()
    assert whole.drafts.tolist() == [[6, 7, 8], [6, 7, 8], [-1, -1, -1]]


def test_a_file_gives_back_the_trace(small, tmp_path):
    (trace,) = traced(small, "a fox", method="sjd2")
    trace.save(tmp_path / "fox.npz")
    loaded = Trace.load(tmp_path / "fox.npz")
    for name in ("committed", "tokens", "structural", "drafts", "levels"):
        assert np.array_equal(getattr(loaded, name), getattr(trace, name))
        assert getattr(loaded, name).dtype == getattr(trace, name).dtype
    assert loaded.about == trace.about
    assert loaded.image.tobytes() == trace.image.tobytes()
    without = traced(small, "a fox", method="ar", output_type="tokens")[0]
    without.save(tmp_path / "tokens.npz")
    loaded = Trace.load(tmp_path / "tokens.npz")
    assert loaded.image is None
    assert loaded.levels is None


def _other_arrays(path):
    np.savez(path, committed=np.arange(3))


def _pickled(path):
    np.savez(path, committed=np.array([{}], dtype=object))


def _cut(path):
    made_up().save(path)
    path.write_bytes(path.read_bytes()[:300])


def _unfitting(path):
    made_up(committed=np.array([1, 3, 6])).save(path)


def _text(path):
    path.write_text("not an archive")


@pytest.mark.parametrize("spoil", [_other_arrays, _pickled, _cut, _unfitting, _text, lambda path: path.touch()])
def test_what_is_no_trace_is_named(tmp_path, spoil):
    spoil(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"trace: .*x\.npz is (no trace|damaged)"):
        Trace.load(tmp_path / "x.npz")


def test_a_trace_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trace: .*nothing\.npz is no file; `sjd2 generate --trace` writes one"):
        Trace.load(tmp_path / "nothing.npz")


def test_the_callback_sees_levels_of_all_rows_when_some_have_left(small):
    seen = []
    small(PROMPTS[:4], method="sjd2", seed=[3, 1, 4, 1], callback=lambda progress: seen.append((progress.levels.clone(), progress.committed.clone())))
    assert all(levels.shape == (4, 64) for levels, _ in seen)
    assert not torch.equal(seen[-2][1], seen[-1][1])
    seen.clear()
    small(PROMPTS[0], method="sjd", callback=lambda progress: seen.append(progress.levels))
    assert set(seen) == {None}
