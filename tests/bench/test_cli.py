"""``sjd2 bench``: files, errors, help, and runs that are interrupted from outside."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time

import pytest
from PIL import Image

from sjd2.cli import main as sjd2
from support.forked import Forked
from support.generic import FIELDS, save_generic

PROMPTS = ["a fox", "two herons in shallow water", "a lamp", "a bee", "a long road by the sea", "snow"]


def main(*arguments: str) -> int:
    return sjd2(["bench", *arguments])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A small model and prompts, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    save_generic(tmp_path / "model", {"adapter": "generic", **FIELDS})
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


COMMAND = ("--model", "model", "--device", "cpu", "--prompts", "prompts.txt", "--window", "4", "-o", "out")


def test_a_run_writes_table_files_and_plots(place, capsys):
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    grid = ("--methods", "ar", "sjd", "--guidance-scale", "1", "2", "--temperature", "0.5", "1", "--limit", "2", "--top-k", "10")
    assert main(*COMMAND, *grid) == 0
    out = capsys.readouterr().out
    assert "2 pictures of each, 1 at a time" in out
    assert "sjd, guidance 2, T = 0.5" in out
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "acceptance.png", "cells.jsonl", "histogram.png", "results.csv", "results.json", "seconds.png", "settings.json", "tokens_per_forward.png",
    ]  # fmt: skip
    results = json.loads((place / "out" / "results.json").read_text())
    assert len(results["rows"]) == 8
    assert results["settings"]["prompts"] == PROMPTS[:2]
    assert {row["top_k"] for row in results["rows"]} == {10}
    with (place / "out" / "results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in results["rows"]]
    assert Image.open(place / "out" / "acceptance.png").size > (300, 300)


def test_windows_that_find_themselves_and_noise_of_ones_own(place, capsys):
    command = (*COMMAND[:6], "-o", "out", "--methods", "sjd", "sjd2", "--limit", "2", "--no-plots")
    assert main(*command, "--window", "auto", "6", "--clean", "0.5", "--levels", "2") == 0
    out = capsys.readouterr().out
    assert "sjd, W = auto" in out
    rows = json.loads((place / "out" / "results.json").read_text())["rows"]
    assert [(row["method"], row["window"], row["clean"], row["levels"]) for row in rows] == [
        ("sjd", "auto", None, None), ("sjd", 6, None, None), ("sjd2", "auto", 0.5, 2), ("sjd2", 6, 0.5, 2),
    ]  # fmt: skip
    assert all(row["windows"] for row in rows if row["window"] == "auto")
    with pytest.raises(SystemExit):
        main(*command, "--window", "wide")
    assert "argument --window: invalid whole number, or auto, value: 'wide'" in capsys.readouterr().err


def test_the_model_that_ships_has_prompts_and_measures_of_its_own(place, capsys):
    assert main("--device", "cpu", "--limit", "1", "--methods", "jacobi", "-o", "out", "--no-plots") == 0
    assert "background_right" in capsys.readouterr().out
    (row,) = json.loads((place / "out" / "results.json").read_text())["rows"]
    assert set(row["quality"]) == {"background_right", "colour_right", "garment_right", "nll"}
    assert not list((place / "out").glob("*.png"))


def test_a_bar_is_shown_on_a_terminal_alone(place, capsys, monkeypatch):
    command = (*COMMAND, "--methods", "sjd", "--no-plots")
    assert main(*command) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(*command, "--restart") == 0
    assert f"/{len(PROMPTS)} [" in capsys.readouterr().err
    assert main(*command, "--restart", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_the_same_command_again_only_reports(place, capsys, monkeypatch):
    assert main(*COMMAND, "--methods", "ar", "sjd", "--no-plots") == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("sjd2.pipeline.decode", lambda *_, **__: pytest.fail("the model ran"))
    assert main(*COMMAND, "--methods", "ar", "sjd", "--no-plots") == 0
    assert capsys.readouterr().out == first
    assert main(*COMMAND, "--methods", "ar", "sjd", "--no-plots", "--seed", "3") == 1
    assert "holds a run with other settings (seed: 0 → 3); give another folder, or --restart" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named_before_any_work(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(*COMMAND, "--methods", "ar") == 1
    error = capsys.readouterr().err
    assert 'matplotlib is not installed, and pictures of figures need it: pip install "sjd2-kernels[bench]"; or go without by --no-plots' in error
    assert not (place / "out").exists()
    assert main(*COMMAND, "--methods", "ar", "--limit", "1", "--no-plots", "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "magic"), "method: expected one of ar"),
        (("--window", "0"), "window: expected a whole number >= 1, got 0"),
        (("--temperature", "-1"), "temperature: expected"),
        (("--guidance-scale", "nan"), "guidance_scale: expected"),
        (("--limit", "0"), "--limit: expected a whole number >= 1, got 0"),
        (("--batch-size", "0"), "batch_size: expected a whole number >= 1, got 0"),
        (("--prompts", "nowhere.txt"), "--prompts: nowhere.txt is no file; expected a file of prompts, .txt, .jsonl or .json"),
        (("--prompts", "model"), "--prompts: model is no file"),
        (("--prompts", "empty.txt"), "--prompts: expected at least one prompt, got none in empty.txt"),
        (("--prompts", "bad.jsonl"), '--prompts: bad.jsonl, line 2: expected {"prompt": "…"}'),
        (("--prompts", "bad.json"), "--prompts: bad.json: expected captions as COCO has them"),
        (("--prompts", "table.csv"), "--prompts: expected a file of prompts"),
        (("--model", "/nowhere/at/all"), "model: expected a folder or a hub name"),
        (("-o", "prompts.txt"), "--output: expected a folder, prompts.txt is a file"),
        (("-o", "prompts.txt/out"), "--output: the folder prompts.txt/out cannot be made"),
        (("--cache", "dense"), "cache: expected one of ragged, paged, got 'dense'"),
        (("--keep-ratio", "0.3"), "keep_ratio: only sjd++ and sjd2-relaxed have one"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(place, capsys, arguments, message):
    (place / "empty.txt").write_text("\n")
    (place / "bad.jsonl").write_text('{"prompt": "a fox"}\n{"caption": 1}\n')
    (place / "bad.json").write_text('{"images": []}')
    (place / "table.csv").write_text("a fox")
    assert main(*COMMAND, "--methods", "sjd", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (place / "out").exists()


def test_a_model_of_ones_own_needs_prompts_of_ones_own(place, capsys):
    assert main("--model", "model", "-o", "out", "--no-plots") == 1
    assert capsys.readouterr().err == "error: --prompts: expected a file of prompts, since --model is given\n"


def test_prompt_files_of_every_kind_are_read(place):
    coco = {"annotations": [{"image_id": 7, "caption": "a fox "}, {"image_id": 7, "caption": "a red fox"}, {"image_id": 3, "caption": "snow"}]}
    (place / "captions.json").write_text(json.dumps(coco))
    (place / "geneval.jsonl").write_text('{"tag": "single_object", "include": [], "prompt": "a fox"}\n\n{"tag": "colors", "prompt": "snow"}\n')
    for name in ("captions.json", "geneval.jsonl"):
        assert main(*COMMAND[:4], "--prompts", name, "--methods", "sjd", "-o", name.split(".")[0], "--no-plots", "--quiet") == 0
        assert json.loads((place / name.split(".")[0] / "results.json").read_text())["settings"]["prompts"] == ["a fox", "snow"]


def test_help_names_methods_files_and_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main("--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for part in ("  mc-sjd ", "results.json", "An interrupted run goes on", "captions_val2014.json", "--restart", "sjd2 eval DIR"):
        assert part in text


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_run_that_is_ended_from_outside_goes_on(place, how):
    many = [*COMMAND, "--methods", "ar", "jacobi", "--num-images", "12", "--no-plots", "--quiet"]
    process = Forked(sjd2, ["bench", *many], folder=place / "printed")
    cells = place / "out" / "cells.jsonl"
    limit = time.monotonic() + 120
    while not (cells.exists() and cells.read_bytes().count(b"\n") >= 4) and process.returncode is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(how)
    process.wait(60)
    kept = [json.loads(line) for line in cells.read_bytes().split(b"\n")[:-1]]
    assert 4 <= len(kept) < 2 * 12 * len(PROMPTS)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert process.stderr == f"{len(kept)} cells are kept in out; the same command goes on\ninterrupted\n"
    assert main(*many) == 0
    finished = [json.loads(line) for line in cells.read_bytes().splitlines()]
    assert finished[: len(kept)] == kept
    assert len({(cell["variant"], cell["first"]) for cell in finished}) == len(finished) == 2 * 12 * len(PROMPTS)
    rows = json.loads((place / "out" / "results.json").read_text())["rows"]
    assert [row["pictures"] for row in rows] == [12 * len(PROMPTS)] * 2
