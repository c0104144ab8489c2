"""Pictures of traces, and ``sjd2 generate --trace`` and ``sjd2 plot``, which make them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sjd2.bench import BenchSettings, run_bench, summarise, variants_of, write_json
from sjd2.cli import main as sjd2
from sjd2.tracing import Recorder, Trace, animate_window, draw_maps, draw_sheet, traces_of
from support.generic import FIELDS, generic_pipeline, save_generic

pytest.importorskip("matplotlib", reason="needs the bench extra")

#: The small model is not tuned.
pytestmark = pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")

PROMPT = "a red coat on a yellow background"


def traced(method: str, seed: int = 3, **settings) -> Trace:
    pipeline, recorder = generic_pipeline(), Recorder()
    output = pipeline("a fox", method=method, seed=seed, callback=recorder, **settings)
    return traces_of(recorder, output, pipeline.adapter.layout(1), pipeline.adapter.grid)[0]


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {method: traced(method) for method in ("ar", "sjd", "sjd2")}


def panels(figure_call) -> dict:
    """What was drawn on the panels of a figure, by their titles."""
    return {axis.get_title(): axis.images[0].get_array() for axis in figure_call.axes if axis.images}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are made."""
    from matplotlib.figure import Figure

    made = []
    original = Figure.__init__

    def watched(self, *arguments, **options):
        original(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(Figure, "__init__", watched)
    return made


@pytest.mark.parametrize("method", ["ar", "sjd", "sjd2"])
def test_maps_show_what_the_trace_holds(traces, drawn, tmp_path, method):
    trace = traces[method]
    draw_maps(trace, tmp_path / "maps.png")
    shown = panels(drawn[0])
    assert np.array_equal(shown["forward that made the token final"], trace.cells(trace.commit_iteration()))
    assert np.array_equal(shown["changes of the token's draft"], trace.cells(trace.draft_changes()))
    assert "seed 3" in shown
    assert Image.open(tmp_path / "maps.png").width > 1000
    draw_maps(replace(trace, image=None), tmp_path / "without.png")
    assert len(panels(drawn[1])) == 2


@pytest.mark.parametrize("method", ["ar", "sjd2"])
def test_the_animation_has_a_frame_for_every_forward_and_ends_with_the_picture(traces, drawn, tmp_path, method):
    trace = traces[method]
    animate_window(trace, tmp_path / "all.gif", frames_per_second=2)
    # Pillow merges frames that are alike: the last one stands for itself and for a second of rest.
    with Image.open(tmp_path / "all.gif") as gif:
        assert gif.n_frames == trace.forwards + 1
        gif.seek(gif.n_frames - 1)
        assert gif.info["duration"] == 500 * 3
    states = drawn[0].axes[-1].images[0].get_array()
    assert (states == 3).all()
    cover = drawn[0].axes[0].images[1].get_array()
    assert (np.asarray(cover)[..., 3] == 0).all()


def test_a_long_run_shows_some_forwards_and_a_trace_without_a_picture_only_states(traces, tmp_path):
    trace = replace(traces["ar"], image=None)
    animate_window(trace, tmp_path / "few.gif", frames=4, frames_per_second=1)
    with Image.open(tmp_path / "few.gif") as gif:
        assert gif.n_frames == 4
    with pytest.raises(ValueError, match="frames: expected a whole number >= 2, got 1"):
        animate_window(trace, tmp_path / "x.gif", frames=1)
    with pytest.raises(ValueError, match="frames_per_second: expected a whole number >= 1, got 0"):
        animate_window(trace, tmp_path / "x.gif", frames_per_second=0)
    assert not (tmp_path / "x.gif").exists()


def test_a_sheet_is_a_table_of_prompts_and_methods(traces, drawn, tmp_path):
    other = traced("sjd", seed=4)
    draw_sheet([*traces.values(), other], tmp_path / "sheet.png")
    titles = [axis.get_title().split("\n")[0] for axis in drawn[0].axes]
    assert titles == ["ar, W = 1", "sjd, W = 16", "sjd2, W = 64", "", "sjd, W = 16", ""]
    assert [axis.get_ylabel() for axis in drawn[0].axes][::3] == ["a fox\nseed 3", "a fox\nseed 4"]
    with pytest.raises(ValueError, match="traces: expected one of each prompt, seed and method, got two of 'a fox', seed 3, ar, W = 1"):
        draw_sheet([traces["ar"], traces["ar"]], tmp_path / "x.png")
    with pytest.raises(ValueError, match="traces: expected pictures in all, got none in that of 'a fox' by ar"):
        draw_sheet([replace(traces["ar"], image=None)], tmp_path / "x.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_generic(tmp_path / "model", {"adapter": "generic", **FIELDS})
    return tmp_path


def test_generate_writes_traces_that_plot_draws(place, capsys, pipeline):
    for method in ("jacobi", "sjd2"):
        command = ["generate", PROMPT, "--seed", "1", "--method", method, "--trace", f"traces/{method}.npz", "--device", "cpu"]
        assert sjd2([*command, "--temperature", "0.8", "-o", f"{method}.png"]) == 0
        assert f"traces/{method}.npz: trace" in capsys.readouterr().out
    trace = Trace.load("traces/sjd2.npz")
    assert trace.tokens.tolist() == pipeline(PROMPT, method="sjd2", seed=1, temperature=0.8).reports[0].tokens
    assert (trace.about["temperature"], trace.about["guidance_scale"]) == (0.8, pipeline.adapter.defaults.guidance_scale)
    assert sjd2(["plot", "traces/jacobi.npz", "traces/sjd2.npz", "-o", "plots", "--frames", "3", "--fps", "1"]) == 0
    names = ["jacobi-maps.png", "jacobi-window.gif", "sheet.png", "sjd2-maps.png", "sjd2-window.gif"]
    assert sorted(path.name for path in (place / "plots").iterdir()) == names
    assert sorted(capsys.readouterr().out.split()) == [f"plots/{name}" for name in names]


def test_several_pictures_have_a_trace_each_and_tokens_alone_have_one_too(place, capsys):
    command = ["generate", "a fox", "snow", "--model", "model", "--device", "cpu", "--num-images", "2", "--batch-size", "3", "--quiet"]
    assert sjd2([*command, "--trace", "t.npz", "--json", "tokens.json", "--method", "sjd"]) == 0
    rows = json.loads((place / "tokens.json").read_text())
    for index, row in enumerate(rows):
        trace = Trace.load(f"t-{index}.npz")
        assert (trace.about["prompt"], trace.about["seed"], trace.tokens.tolist()) == (row["prompt"], row["seed"], row["tokens"])
        assert trace.image is None
    capsys.readouterr()
    assert sjd2(["plot", "t-0.npz", "t-1.npz", "--kinds", "maps", "-o", "plots", "--quiet"]) == 0
    assert sorted(path.name for path in (place / "plots").iterdir()) == ["t-0-maps.png", "t-1-maps.png"]
    assert capsys.readouterr().out == ""


def test_a_benchmark_is_drawn_again_from_its_folder(place, capsys):
    variants = variants_of(["ar", "sjd"], guidance_scales=[1.0, 2.0], temperatures=[1.0], top_k=0, top_p=1.0)
    settings = BenchSettings(("a fox", "snow"), tuple(variants))
    write_json(place / "run" / "results.json", {"rows": summarise(settings, run_bench(generic_pipeline(), settings, place / "run"))})
    assert sjd2(["plot", "run", "-o", "plots"]) == 0
    names = ["acceptance.png", "histogram.png", "seconds.png", "tokens_per_forward.png"]
    assert sorted(path.name for path in (place / "plots").iterdir()) == names
    assert "plots/acceptance.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npz"], "trace: nothing.npz is no file; `sjd2 generate --trace` writes one"),
        (["text.npz"], "trace: text.npz is no trace"),
        (["empty"], "empty: expected a folder that `sjd2 bench` finished, found no results.json in it"),
        (["fox.npz", "other/fox.npz"], "TRACE: expected files of different names"),
        (["fox.npz", "--kinds", "bench"], "--kinds: bench needs the folder of a benchmark, got none"),
        (["fox.npz", "--frames", "1"], "frames: expected a whole number >= 2, got 1"),
        (["fox.npz", "-o", "text.npz"], "--output: the folder text.npz cannot be made: text.npz is a file"),
    ],
)
def test_errors_of_plot_are_one_line(place, traces, capsys, arguments, message):
    (place / "text.npz").write_text("no archive")
    (place / "empty").mkdir()
    traces["ar"].save(place / "fox.npz")
    traces["ar"].save(place / "other" / "fox.npz")
    capsys.readouterr()
    assert sjd2(["plot", *arguments, *([] if "-o" in arguments else ["-o", "plots"])]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("t.json", "--trace: expected a .npz file, got t.json"),
        ("taken/t.npz", "--trace: the folder taken cannot be made"),
        ("folder.npz", "--trace: expected a file, folder.npz is a folder"),
    ],
)
def test_a_trace_that_cannot_be_written_is_an_error_before_any_work(place, capsys, monkeypatch, trace, message):
    (place / "taken").write_text("a file")
    (place / "folder.npz").mkdir()
    monkeypatch.setattr("sjd2.cli.generate.TextToImagePipeline.from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    assert sjd2(["generate", PROMPT, "--trace", trace]) == 1
    assert message in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(place, traces, capsys, monkeypatch):
    traces["ar"].save(place / "fox.npz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert sjd2(["plot", "fox.npz"]) == 1
    assert 'pip install "sjd2-kernels[bench]"' in capsys.readouterr().err


def test_help_of_plot_says_what_is_drawn(capsys):
    with pytest.raises(SystemExit) as exit_info:
        sjd2(["plot", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {kind} " in text for kind in ("maps", "window", "sheet", "bench"))
