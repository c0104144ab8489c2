"""Benchmarks: what is run, in which order, what is kept when a run is interrupted, and when a run goes on."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch

import sjd2.bench.run
from sjd2.bench import BenchSettings, Store, code_digest, fingerprint, run_bench, summarise, variants_of
from sjd2.bench.memory import PeakMemory
from sjd2_kernels import compiled
from support.generic import generic_model, generic_pipeline

PROMPTS = ("a fox", "two herons in shallow water", "a lamp")


@pytest.fixture(scope="module")
def pipeline():
    return generic_pipeline()


def settings(methods=("ar", "jacobi", "mc-sjd"), windows=(4,), **others) -> BenchSettings:
    sampling = {"guidance_scales": [2.0], "temperatures": [1.0], "top_k": 20, "top_p": 1.0}
    return BenchSettings(PROMPTS, tuple(variants_of(methods, windows=windows, **sampling)), **others)


def without_times(cells: list[dict]) -> list[dict]:
    measured = ("seconds", "forward_seconds", "peak_memory")
    return sorted(
        ({name: value for name, value in cell.items() if name not in measured} for cell in cells), key=lambda cell: (cell["first"], cell["variant"])
    )


class Interrupting:
    """Stands in for the cell's run; raises in the n-th."""

    def __init__(self, monkeypatch, at: int | None = None):
        self.calls, self._at, self._run = [], at, sjd2.bench.run._run_cell
        monkeypatch.setattr(sjd2.bench.run, "_run_cell", self)

    def __call__(self, pipeline, settings, variant, pictures):
        if len(self.calls) == self._at:
            raise KeyboardInterrupt
        self.calls.append((variant.method, pictures[0][0]))
        return self._run(pipeline, settings, variant, pictures)


def test_methods_take_turns_and_each_prompt_begins_with_another(pipeline, tmp_path, monkeypatch):
    watched = Interrupting(monkeypatch)
    run_bench(pipeline, settings(), tmp_path)
    turns = ["ar", "jacobi", "mc-sjd", "jacobi", "mc-sjd", "ar", "mc-sjd", "ar", "jacobi"]
    assert watched.calls == list(zip(turns, [prompt for prompt in PROMPTS for _ in range(3)], strict=True))


def test_cells_hold_what_the_pipeline_gives(pipeline, tmp_path):
    cells = run_bench(pipeline, settings(seed=5), tmp_path)
    for index, method in enumerate(("ar", "jacobi", "mc-sjd")):
        window = {} if method == "ar" else {"window": 4}
        output = pipeline(list(PROMPTS), method=method, seed=5, guidance_scale=2.0, top_k=20, **window)
        mine = [picture for cell in without_times(cells) if cell["variant"] == index for picture in cell["pictures"]]
        assert [picture["tokens"] for picture in mine] == [report.tokens for report in output.reports]
        assert [picture["forwards"] for picture in mine] == [report.forwards for report in output.reports]
        for picture in mine:
            assert sum(picture["histogram"].values()) == picture["forwards"]
            assert sum(int(tokens) * times for tokens, times in picture["histogram"].items()) == len(picture["tokens"])


def test_batches_hold_the_same_pictures(pipeline, tmp_path):
    one_by_one = run_bench(pipeline, settings(num_images=2), tmp_path / "one")
    batches = run_bench(pipeline, settings(num_images=2, batch_size=4), tmp_path / "batches")
    assert [len(cell["pictures"]) for cell in without_times(batches)] == [4, 4, 4, 2, 2, 2]

    def pictures(cells):
        return {(cell["variant"], one["prompt"], one["seed"]): (one["tokens"], one["histogram"]) for cell in cells for one in cell["pictures"]}

    assert pictures(batches) == pictures(one_by_one)
    assert len(pictures(batches)) == 18


def test_every_setting_reaches_the_pipeline_and_a_batch_takes_as_long_as_its_last_picture(pipeline, tmp_path, monkeypatch):
    calls, outputs = [], []
    kind = type(pipeline)

    def watched(self, prompts, **options):
        calls.append(options)
        outputs.append(original(self, prompts, **options))
        return outputs[-1]

    original = kind.__call__
    monkeypatch.setattr(kind, "__call__", watched)
    monkeypatch.setattr(sjd2.bench.run, "_warm_up", lambda *_: None)
    others = {"cache": "paged", "negative_prompt": "fog", "height": 6, "width": 8, "graphs": False}
    cells = run_bench(pipeline, settings(methods=("sjd",), batch_size=3, seed=2, **others), tmp_path)
    (call,) = calls
    assert others.items() <= call.items()
    assert {"method": "sjd", "window": 4, "guidance_scale": 2.0, "temperature": 1.0, "top_k": 20, "top_p": 1.0}.items() <= call.items()
    assert (call["seed"], call["batch_size"]) == ([2, 3, 4], 3)
    last = max(outputs[0].reports, key=lambda report: report.seconds)
    assert len({report.seconds for report in outputs[0].reports}) > 1
    assert (cells[0]["seconds"], cells[0]["forward_seconds"]) == (last.seconds, last.forward_seconds)


def test_an_automatic_window_is_looked_for_over_the_cells_and_the_ones_tried_are_told(tmp_path):
    fresh = generic_pipeline()
    plan = settings(methods=("ar", "mc-sjd"), windows=("auto",), num_images=2)
    cells = run_bench(fresh, plan, tmp_path)
    (chooser,) = fresh._choosers.values()
    mine = [cell["pictures"][0] for cell in cells if cell["variant"] == 1]
    assert len(mine) == 6
    assert {picture["window"] for picture in mine} == set(chooser._seen)
    assert sum(evidence.forwards for evidence in chooser._seen.values()) == sum(picture["forwards"] for picture in mine)
    plain, auto = summarise(plan, cells)
    assert "windows" not in plain
    assert (auto["window"], auto["windows"]) == ("auto", sorted(chooser._seen))


def test_noise_settings_reach_the_pipeline(pipeline, tmp_path, monkeypatch):
    calls, kind = [], type(pipeline)
    original = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, prompts, **options: calls.append(options) or original(self, prompts, **options))
    sampling = {"guidance_scales": [2.0], "temperatures": [1.0], "top_k": 20, "top_p": 1.0}
    variants = variants_of(("sjd", "sjd2"), windows=[8], clean=0.5, levels=2, **sampling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this model is not tuned for noise
        run_bench(pipeline, BenchSettings(PROMPTS[:1], tuple(variants)), tmp_path)
    given = {call["method"]: (call["clean"], call["levels"]) for call in calls}
    assert given == {"sjd": (None, None), "sjd2": (0.5, 2)}


def test_tokens_alone_need_no_decoder_and_make_no_picture(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.adapter, "decode", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = pipeline("a fox", method="sjd", output_type="tokens")
    assert output.images == []
    assert output.tokens[0].tolist() == output.reports[0].tokens
    with pytest.raises(ValueError, match="output_type: expected pil or tokens, got 'latent'"):
        pipeline("a fox", output_type="latent")


@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(pipeline, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        Interrupting(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run_bench(pipeline, settings(), tmp_path / "cut")
    assert len(Store(tmp_path / "cut").cells()) == at
    watched = Interrupting(monkeypatch)
    cells = run_bench(pipeline, settings(), tmp_path / "cut")
    assert len(watched.calls) == 9 - at
    assert without_times(cells) == without_times(Store(tmp_path / "cut").cells())
    assert without_times(cells) == without_times(run_bench(pipeline, settings(), tmp_path / "whole"))


def test_a_finished_run_decodes_nothing(pipeline, tmp_path, monkeypatch):
    cells = run_bench(pipeline, settings(), tmp_path)
    monkeypatch.setattr(pipeline.adapter, "forward", lambda *_, **__: pytest.fail("the model ran"))
    assert run_bench(pipeline, settings(), tmp_path) == cells


def test_a_line_that_a_kill_cut_off_is_run_again(pipeline, tmp_path):
    cells = run_bench(pipeline, settings(), tmp_path)
    path = tmp_path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert without_times(run_bench(pipeline, settings(), tmp_path)) == without_times(cells)
    assert len(path.read_text().splitlines()) == 9
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: 0 → 1"),
        ({"prompts": PROMPTS[:2]}, "prompts: 3 → 2 of them"),
        ({"prompts": (*PROMPTS[:2], "a bee")}, r"prompts\[2\]: 'a lamp' → 'a bee'"),
        ({"variants": settings(windows=(8,)).variants}, r"variants\[1\].window: 4 → 8; variants\[2\].window: 4 → 8"),
        ({"batch_size": 2}, "batch_size: 1 → 2"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_lost(pipeline, tmp_path, change, message):
    run_bench(pipeline, settings(), tmp_path)
    before = (tmp_path / "cells.jsonl").read_bytes()
    with pytest.raises(ValueError, match=rf"--output: .* holds a run with other settings \({message}.*--restart"):
        run_bench(pipeline, replace(settings(), **change), tmp_path)
    assert (tmp_path / "cells.jsonl").read_bytes() == before
    cells = run_bench(pipeline, replace(settings(), **change), tmp_path, restart=True)
    assert cells == Store(tmp_path).cells()


def test_other_weights_are_other_settings(pipeline, tmp_path):
    run_bench(pipeline, settings(), tmp_path)
    other = generic_pipeline()
    with torch.no_grad():
        other.adapter.model.model.layers[0].mlp.up_proj.weight.add_(1e-3)
    with pytest.raises(ValueError, match=r"model\.weights: "):
        run_bench(other, settings(), tmp_path)


def test_another_size_of_picture_is_another_setting(pipeline, tmp_path, monkeypatch):
    run_bench(pipeline, settings(), tmp_path)
    monkeypatch.setattr(pipeline.adapter, "grid", (2, 4))
    with pytest.raises(ValueError, match=r"model\.grid\[0\]: 3 → 2"):
        run_bench(pipeline, settings(), tmp_path)


def test_a_setting_that_the_model_refuses_leaves_nothing_behind(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"window: expected at most the model.s 128 positions"):
        run_bench(pipeline, settings(windows=(1000,)), tmp_path / "new")
    with pytest.raises(ValueError, match="prompt: expected a caption, got an empty string"):
        run_bench(pipeline, replace(settings(), prompts=("a fox", " ")), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_fingerprint_does_not_depend_on_where_a_model_came_from():
    assert fingerprint(generic_model()) == fingerprint(generic_model())
    changed = generic_model()
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    assert fingerprint(changed) != fingerprint(generic_model())


def test_memory_is_counted_anew_in_every_block():
    with PeakMemory(torch.device("cpu")) as large:
        torch.ones(64, 2**20)
    with PeakMemory(torch.device("cpu")) as small:
        pass
    if large.bytes is None:
        pytest.skip("the system does not count memory anew")
    assert large.bytes - small.bytes > 200 * 2**20


def test_rows_of_a_run_that_is_not_finished_say_how_many_pictures_they_speak_of(pipeline, tmp_path):
    cells = [cell for cell in run_bench(pipeline, settings(), tmp_path) if (cell["variant"], cell["first"]) not in ((1, 1), (2, 0), (2, 1), (2, 2))]
    rows = summarise(settings(), cells)
    assert [(row["method"], row["pictures"]) for row in rows] == [("ar", 3), ("jacobi", 2)]


def test_the_code_that_decodes_is_told_apart_by_its_compiled_part_too(monkeypatch):
    with_module = code_digest()
    assert code_digest() == with_module
    if compiled.module is None:
        pytest.skip("there is no compiled module")
    monkeypatch.setattr(compiled, "module", None)
    assert code_digest() != with_module
