"""Runs that follow one another share graphs; their tokens are those of runs on their own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from sjd2 import TextToImagePipeline
from sjd2.cache import CACHES
from sjd2.decoding import PRESETS, TokenLayout, decode, memory
from sjd2.decoding.kept import Kept
from sjd2.denoising import Denoising
from sjd2_kernels import LogitsProcessing
from support.llama import random_llama, random_prompt, sliced
from support.tape import Tape


@pytest.fixture
def model():
    return sliced(random_llama())


def run(model, method="mc-sjd", *, seed=0, lengths=(3, 5), temperature=0.9, **options):
    """One image, guided."""
    preset = PRESETS[method] if method == "ar" else replace(PRESETS[method], window=6)
    if preset.denoising is not None:
        preset = replace(preset, denoising=Denoising(clean=3))
    prompt, _ = random_prompt(model, list(lengths))
    batch = len(lengths) // 2
    processing = LogitsProcessing.create(batch, guidance_scale=2.0, temperature=temperature, **options.pop("processing", {}))
    seeds = torch.arange(batch) + seed
    return decode(model, prompt, TokenLayout.grid(batch, 4, 6), processing, preset, seeds, **options)


def same(one, other):
    assert torch.equal(one.tokens, other.tokens)
    assert [(row.tokens, row.forwards, row.accepted) for row in one.rows] == [(row.tokens, row.forwards, row.accepted) for row in other.rows]


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("method", ["ar", "jacobi", "mc-sjd", "sjd2"])
def test_the_next_run_moves_into_the_graphs_of_the_last(model, method, cache):
    kept, first, second = Kept(), Tape(), Tape()
    same(run(model, method, cache=cache, graphs=first, kept=kept), run(model, method))
    assert first.recordings >= 1
    for seed, lengths, temperature in ((1, (3, 5), 0.9), (2, (6, 2), 0.5), (3, (1, 1), 1.3)):
        settings = {"seed": seed, "lengths": lengths, "temperature": temperature}
        same(run(model, method, cache=cache, graphs=second, kept=kept, **settings), run(model, method, **settings))
    assert second.recordings == second.replays == 0, "nothing is left to record"
    assert first.replays > 3 * first.recordings


def test_waiting_rows_and_callbacks_are_those_of_their_own_run(model):
    kept, seen = Kept(), []
    run(model, graphs=Tape(), kept=kept)
    settings = {"seed": 5, "lengths": (3, 4, 2, 5, 1, 6), "batch_size": 1}
    tape = Tape()
    got = run(model, graphs=tape, kept=kept, callback=lambda progress: seen.append(progress.committed.clone()), **settings)
    same(got, run(model, **settings))
    assert tape.recordings == 0
    assert all((later >= earlier).all() for earlier, later in pairwise(seen)), "no row ever has fewer tokens than before"


@pytest.mark.parametrize(
    "change",
    [
        {"method": "sjd"},
        {"lengths": (3, 5, 4, 2)},
        {"lengths": (150, 2)},
        {"processing": {"top_k": 5}},
        {"processing": {"allowed": torch.arange(32) > 3}},
        {"cache": "paged"},
    ],
    ids=lambda change: str(list(change)),
)
def test_another_kind_of_run_begins_anew(model, change):
    kept, tape = Kept(), Tape()
    run(model, graphs=Tape(), kept=kept)
    same(run(model, graphs=tape, kept=kept, **change), run(model, **change))
    assert tape.recordings >= 1


def test_weights_that_changed_are_seen(model):
    kept, tape = Kept(), Tape()
    run(model, graphs=Tape(), kept=kept)
    with torch.no_grad():
        model.model.lm_head.weight.add_(0.1)
    same(run(model, graphs=tape, kept=kept), run(model))
    assert tape.recordings >= 1
    model.model.to(torch.float32)
    model.model.to(torch.float64)
    another = Tape()
    run(model, graphs=another, kept=kept)
    assert another.recordings >= 1, "they lie elsewhere now"


def test_a_run_that_fails_leaves_nothing_behind(model):
    kept = Kept()
    run(model, graphs=Tape(), kept=kept)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, seed=1, graphs=Tape(), kept=kept, callback=stop)
    tape = Tape()
    same(run(model, seed=2, graphs=tape, kept=kept), run(model, seed=2))
    assert tape.recordings >= 1


def test_what_is_kept_counts_as_room(model, monkeypatch):
    kept = Kept()
    run(model, graphs=Tape(), kept=kept)
    monkeypatch.setattr(memory, "available", lambda device: 0)
    run(model, graphs=Tape(), kept=kept)
    with pytest.raises(MemoryError):
        run(model, graphs=Tape(), kept=kept, method="sjd")


def test_eager_runs_keep_nothing(model):
    kept = Kept()
    run(model, kept=kept)
    assert kept._run is None


def test_a_pipeline_keeps_its_last_run_until_it_is_compiled(monkeypatch):
    pipeline = TextToImagePipeline.from_pretrained(device="cpu")
    seen = []
    monkeypatch.setattr("sjd2.pipeline.decode", lambda *arguments, **named: seen.append(named["kept"]) or decode(*arguments, **named))
    for seed in range(2):
        pipeline("a red coat on a yellow background", window=16, seed=seed, output_type="tokens")
    assert seen[0] is seen[1] is pipeline._kept
    dropped = []
    monkeypatch.setattr(pipeline._kept, "drop", lambda: dropped.append(True))
    pipeline.compile()
    pipeline.release_memory()
    assert len(dropped) == 2
