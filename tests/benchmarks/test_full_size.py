"""The timing of full-size models, on models of a few thousand parameters."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import full_size
import iterations
import pytest
import torch
from small_models import emu3, janus, lumina

from sjd2.cache import CACHES
from sjd2.decoding import PRESETS, Prompt, TokenLayout
from sjd2.decoding.graphs import Eager
from sjd2.decoding.loop import iterate
from sjd2.decoding.state import Plan, begin
from sjd2.denoising.window import Denoiser
from sjd2_kernels import LogitsProcessing
from support.no_host import FromTheHost
from support.tape import Tape

ARGUMENTS = ["--windows", "1", "4", "--batches", "1", "2", "--iterations", "3", "--device", "cpu"]


@pytest.mark.parametrize("name", list(full_size.SMALL))
def test_every_window_and_batch_is_timed(tmp_path, name):
    path = tmp_path / "full_size.json"
    full_size.main([*ARGUMENTS, "--models", name, "--end-to-end", "4", "-o", str(path)])
    results = json.loads(path.read_text())
    *rows, ar, four = results["rows"]
    assert results["copy_bytes_per_second"] > 1e8
    assert ar["forwards"] == ar["tokens"]
    assert four["tokens"] / 4 <= four["forwards"] <= four["tokens"] / 4 + 1
    assert ar["end_to_end"] == 1
    assert four["end_to_end"] == 4
    assert [(row["batch"], row["window"]) for row in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    published = name != "small Janus"
    assert ["published_milliseconds" in row for row in rows] == [published, published, False, False]
    for row in rows:
        split = row["split"]
        assert sum(split[part] for part in ("forward", "verify", "cache", "rest")) == pytest.approx(split["iteration"])
        assert 0 < split["verify"] < split["iteration"]
        assert row["milliseconds"] == row["eager_milliseconds"] > 0
        assert row["peak_bytes"] > row["weight_bytes"] > 0


def test_the_file_has_what_was_done_before_a_row_that_fails(tmp_path, monkeypatch):
    timed = full_size.timed

    def once(adapter, size, preset, batch, *arguments, **named):
        if batch == 2:
            raise RuntimeError("the device is gone\nand more")
        return timed(adapter, size, preset, batch, *arguments, **named)

    monkeypatch.setattr(full_size, "timed", once)
    path = tmp_path / "full_size.json"
    assert full_size.main([*ARGUMENTS, "--models", "small Emu3", "-o", str(path)]) == 1
    rows = json.loads(path.read_text())["rows"]
    assert [row.get("not run", "") for row in rows] == ["", "", *["RuntimeError: the device is gone"] * 2]


def test_what_has_no_room_is_a_row_that_says_so(tmp_path, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("no room for 16 GiB\nand more")

    monkeypatch.setattr(full_size, "with_weights", none)
    path = tmp_path / "full_size.json"
    assert full_size.main([*ARGUMENTS, "--models", "small Emu3", "-o", str(path)]) == 0, "a card that is too small is no error"
    assert json.loads(path.read_text())["rows"] == [{"model": "small Emu3", "not run": "OutOfMemoryError: no room for 16 GiB"}]


@pytest.mark.parametrize(("build", "start"), [(emu3, 20), (lumina, 4), (janus, 0)])
def test_the_weights_of_a_forward_are_counted(build, start):
    """All but the embedding table, what tokenises and draws images, and the rows of the head that are no image ids."""
    size = build()
    adapter = full_size.with_weights(size, start, "cpu", torch.bfloat16)
    counted = iterations.bytes_of_a_forward(adapter, size)
    parts = dict(adapter.model.named_parameters())
    layers = sum(weight.numel() for name, weight in parts.items() if ".layers." in name and not any(apart in name for apart in ("vision", "vq")))
    norm = 32  # behind the last layer
    head = size.vocab_size * 32
    if build is janus:
        head = sum(weight.numel() for name, weight in parts.items() if "generation_head" in name)
    assert counted == 2 * (layers + norm + head)


def halfway_through(batch: int) -> iterations.Halfway:
    size = emu3()
    adapter = full_size.with_weights(size, 20, "cpu", torch.float32)
    return iterations.Halfway.of(adapter, size, full_size.mc_sjd(4), batch, LogitsProcessing.create(batch, guidance_scale=3.0))


@torch.inference_mode()
def test_a_recorded_iteration_is_split_as_well(monkeypatch):
    """With a trace in place of a graph; what it takes is that of its first replay, in which it is traced."""
    tape = Tape()
    monkeypatch.setattr(iterations, "record_cuda_graph", lambda: tape)
    halfway = halfway_through(1)
    halfway.run(Eager(), 2, lambda: None)
    figures = iterations._as_graph(halfway, iterations.Clock(torch.device("cpu")), 4, 3, 0.0)
    assert tape.recordings == 1
    assert tape.replays == iterations.WARM_UP + 4 + 3 - 1, "but the first, which warms up"
    assert figures["milliseconds"] == figures["graph_milliseconds"] > 0
    split = figures["split"]
    assert all(split[part] > 0 for part in ("forward", "verify", "cache", "rest"))


@torch.inference_mode()
def test_an_iteration_that_cannot_be_recorded_says_why(monkeypatch):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(iterations, "record_cuda_graph", lambda: refuse)
    figures = iterations._as_graph(halfway_through(1), iterations.Clock(torch.device("cpu")), 2, 3, 0.0)
    assert list(figures) == ["graph not run"]
    assert "operation not permitted" in figures["graph not run"]


def test_every_iteration_begins_at_the_same_place():
    places = []

    def place():
        places.append((halfway.cache.lengths.tolist(), halfway.state.committed.tolist(), halfway.state.remaining.tolist()))

    with torch.inference_mode():
        halfway = halfway_through(2)
        halfway.run(Eager(), 5, place)
        halfway.run(Eager(), 1, place)
    before, after = places[::2], places[1::2]
    assert before == [([4 + 11] * 4, [11, 11], [11, 11])] * 6
    assert all(lengths[0] > 15 and committed[0] > 11 and remaining[0] < 11 for lengths, committed, remaining in after)


@pytest.mark.parametrize(("build", "start"), [(emu3, 20), (lumina, 4), (janus, 0)])
@pytest.mark.parametrize("method", ["ar", "mc-sjd", "sjd2"])
def test_an_iteration_of_a_published_architecture_asks_nothing_of_the_host(build, start, method):
    """What ``tests/decoder/test_no_host.py`` says of a Llama, said of these forwards: a CUDA graph can hold them."""
    adapter = full_size.with_weights(build(), start, "cpu", torch.bfloat16)
    adapter.model.to("meta")
    adapter._vocabulary_ids = adapter._vocabulary_ids.to("meta")
    batch, count, preset, device = 2, 24, PRESETS[method], torch.device("meta")
    preset = preset if method == "ar" else replace(preset, window=8)

    def rows(value: int, *shape: int) -> torch.Tensor:
        return torch.full(shape, value, device=device)

    layout = TokenLayout(rows(-1, batch, count), rows(count, batch), row_stride=6)
    processing = LogitsProcessing.create(batch, guidance_scale=3.0, top_k=20, device=device)
    plan = Plan(adapter, layout, processing, preset, rows(0, batch), guided=True, structural=True, cache=CACHES["ragged"], compact=False)
    if preset.denoising is not None:
        plan = replace(plan, denoiser=Denoiser(preset.denoising, preset.window, adapter, device, structural=True))
    prompt = Prompt(torch.zeros(2 * batch, 5, 32, dtype=torch.bfloat16, device=device), rows(5, 2 * batch))
    with torch.inference_mode():
        state, cache = begin(plan, prompt, nullcontext(), capacity=5 + count + preset.window + 10)
        iterate(plan, state, cache, nullcontext())  # the first one fills what models and caches keep
        with FromTheHost() as copies:
            for _ in range(2):
                iterate(plan, state, cache, nullcontext())
    assert copies.seen == []
