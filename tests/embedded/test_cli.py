"""The command line: files, JSON, exit codes, and one line on stderr for every error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sjd2 import __version__
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.cli import main as sjd2
from support.cli import one_line_error

PROMPT = "a red coat on a yellow background"


def main(arguments: list[str]) -> int:
    """The command on the CPU, where its tokens are compared with those of the Python door."""
    return sjd2([*arguments, "--device", "cpu"] if arguments[:1] == ["generate"] and "--device" not in arguments else arguments)


def test_a_prompt_alone_writes_a_picture_named_after_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", PROMPT]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a-red-coat-on-a-yellow-background.png"]
    assert Image.open("a-red-coat-on-a-yellow-background.png").size == (256, 256)
    assert "256 tokens in" in capsys.readouterr().out


def test_json_holds_what_was_asked_for_and_what_was_decoded(tmp_path, pipeline):
    command = ["generate", PROMPT, "a blue bag", "--method", "gs-sjd", "--seed", "4", "--num-images", "2", "--window", "24"]
    command += ["--guidance-scale", "2", "--temperature", "0.9", "--top-k", "50", "--top-p", "0.95", "--quiet"]
    assert main([*command, "-o", str(tmp_path / "pictures"), "--json", str(tmp_path / "figures.json")]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["prompt"], row["seed"]) for row in rows] == [(PROMPT, 4), (PROMPT, 5), ("a blue bag", 6), ("a blue bag", 7)]
    output = pipeline(
        [PROMPT, "a blue bag"], method="gs-sjd", seed=4, num_images_per_prompt=2, window=24, guidance_scale=2.0, temperature=0.9, top_k=50, top_p=0.95
    )
    for row, report in zip(rows, output.reports, strict=True):
        assert row["method"] == "gs-sjd"
        assert row["tokens"] == report.tokens
        assert row["forwards"] == report.forwards
        assert row["tokens_per_forward"] == pytest.approx(len(row["tokens"]) / row["forwards"])
        assert row["accepted_per_forward"] == report.accepted_per_forward
        assert row["seconds"] > 0
    assert len(list((tmp_path / "pictures").iterdir())) == 4


@pytest.mark.parametrize(("option", "clean"), [("24", 24), ("0.5", 0.5)])
def test_clean_slots_and_levels_are_those_of_the_python_door(tmp_path, pipeline, option, clean):
    command = ["generate", PROMPT, "--method", "sjd2", "--clean", option, "--levels", "2", "--quiet", "-o", str(tmp_path / "coat.png")]
    assert main([*command, "--json", str(tmp_path / "coat.json")]) == 0
    (row,) = json.loads((tmp_path / "coat.json").read_text())
    report = pipeline(PROMPT, method="sjd2", clean=clean, levels=2).reports[0]
    assert (row["tokens"], row["forwards"]) == (report.tokens, report.forwards)
    assert row["forwards"] != pipeline(PROMPT, method="sjd2").reports[0].forwards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "jacobi", "--clean", "8"], "clean: only methods that denoise have it (sjd2, sjd2-relaxed), got 8 for jacobi"),
        (["--method", "sjd2", "--levels", "0"], "levels: expected a whole number >= 1, got 0"),
        (["--method", "sjd2", "--clean", "1.5"], "clean: expected a whole number >= 1, or a share of the window in (0.0, 1.0], got 1.5"),
    ],
)
def test_bad_clean_slots_and_levels_are_named(options, message, tmp_path, capsys):
    assert main(["generate", PROMPT, *options, "-o", str(tmp_path / "coat.png")]) == 1
    assert message in capsys.readouterr().err


def test_several_pictures_beside_one_file_name_are_numbered(tmp_path):
    assert main(["generate", "a bag", "a boot", "-o", str(tmp_path / "x.png"), "--upscale", "1", "--quiet", "--method", "jacobi"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0.png", "x-1.png"]
    assert Image.open(tmp_path / "x-0.png").size == (32, 32)


def test_a_trailing_slash_means_a_folder(tmp_path):
    assert main(["generate", "a bag", "-o", f"{tmp_path}/pictures.v2/", "--quiet", "--method", "jacobi"]) == 0
    assert [path.name for path in (tmp_path / "pictures.v2").iterdir()] == ["000-a-bag-seed0.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "method: expected one of"),
        (["--window", "0"], "window: expected a whole number >= 1, got 0"),
        (["--temperature", "-1"], "temperature: expected"),
        (["--top-k", "-1"], "top_k: expected"),
        (["--top-p", "2"], "top_p: expected"),
        (["--seed", "-3"], "seed: expected"),
        (["--num-images", "0"], "num_images_per_prompt: expected"),
        (["--upscale", "0"], "--upscale: expected"),
        (["--cache", "dense"], "cache: expected one of ragged, paged, got 'dense'"),
        (["--model", "/nowhere/at/all"], "model: expected a folder or a hub name"),
        (["-o", "picture.xyz"], "--output: expected a picture file"),
        (["-o", "picture.psd"], "--output: expected a picture file"),
        (["-o", "new/folder/picture.png", "--window", "0"], "window: expected"),
        (["--device", "banana"], "device: expected one of cpu"),
        (["--top-k", "99999999999999999999"], "top_k: expected"),
        (["-o", "taken/picture.png"], "--output: the folder taken cannot be made"),
        (["--json", "."], "--json: expected a file, . is a folder"),
        (["--json", "taken/figures.json"], "--json: the folder taken cannot be made"),
    ],
)
def test_errors_are_one_line_with_exit_code_1_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file, not a folder")
    assert main(["generate", PROMPT, *arguments]) == 1
    assert message in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def _cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _spoil(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][64 + 200 :] = torch.nan  # most image codes
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (_cut, "cannot be loaded"),
        (_spoil, "logits: expected finite values and at least one id that may be drawn, got NaN"),
    ],
    ids=["missing", "cut", "not finite"],
)
def test_damaged_weights_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, damage, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    damage(tmp_path / "model")
    assert main(["generate", PROMPT, "--model", "./model"]) == 1
    assert message in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_window_that_the_model_has_no_positions_for_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", PROMPT, "--window", "10000"]) == 1
    assert capsys.readouterr().err.startswith("error: window: expected at most the model's 512 positions, got 10000")


def test_a_folder_without_write_permission_is_an_error_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").mkdir()
    # Pretended: whoever runs this as the superuser can write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode == os.W_OK and Path(path).name == "locked"))
    monkeypatch.setattr("sjd2.cli.generate.TextToImagePipeline.from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    for option in ("--output", "--json"):
        assert main(["generate", PROMPT, option, "locked/x.png"]) == 1
        assert capsys.readouterr().err == f"error: {option}: locked/x.png cannot be written\n"


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_picture(tmp_path, monkeypatch, capsys):
    def save(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    assert main(["generate", PROMPT, "-o", str(tmp_path / "x.png"), "--quiet"]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_too_long_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", PROMPT, "coat " * 31, "--batch-size", "1"]) == 1
    assert capsys.readouterr().err == "error: prompt: expected at most 30 words, got 31\n"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt_is_an_error(capsys):
    assert main(["generate", " "]) == 1
    assert capsys.readouterr().err == "error: prompt: expected a caption, got an empty string\n"


def test_unknown_words_are_one_warning_line(tmp_path, capsys):
    assert main(["generate", "a purple umbrella", "-o", str(tmp_path / "x.png"), "--quiet", "--method", "jacobi"]) == 0
    assert capsys.readouterr().err == "warning: prompt: the model does not know umbrella\n"


@pytest.mark.parametrize("arguments", [[], ["generate"], ["nonsense"], ["generate", PROMPT, "--window", "many"]])
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2


def test_help_names_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["generate", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {method} " in text for method in ("ar", "jacobi", "sjd", "mc-sjd", "gs-sjd", "sjd++", "sjd2", "sjd2-relaxed"))


def test_info_names_versions_and_devices(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"sjd2-kernels  {__version__}" in text
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"]
    built = not facts["native code"].startswith("not built")
    assert facts["kv cache"].startswith("native (torch: can run)" if built and not torch.cuda.is_available() else ("native", "torch"))
    assert facts["verify"].startswith(("cpp (torch: ", "torch (cpp: ", "triton (torch: "))
    assert facts["denoise"] == facts["verify"]
    assert facts["attention"].startswith("model, triton")


def test_the_cache_does_not_change_the_picture(tmp_path):
    for cache in ("ragged", "paged"):
        command = ["generate", "a bag", "--seed", "3", "--quiet", "--method", "jacobi", "--cache", cache]
        assert main([*command, "-o", str(tmp_path / f"{cache}.png")]) == 0
    assert (tmp_path / "ragged.png").read_bytes() == (tmp_path / "paged.png").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_with_one_line_and_no_file(tmp_path):
    # Where the tests themselves run in the background of a script, SIGINT is ignored and children inherit that: it is set back first. An interrupt
    # in the middle of an import may be lost there; what is tested is one in the middle of the work.
    script = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import sjd2.pipeline
from sjd2.cli import main

decode = sjd2.pipeline.decode

def announced(*arguments, **options):
    print("decoding", flush=True)
    return decode(*arguments, **options)

sjd2.pipeline.decode = announced
sys.exit(main())
"""
    command = [sys.executable, "-c", script]
    command += ["generate", PROMPT, "--device", "cpu", "--num-images", "4000", "-o", "pictures", "--json", "figures.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "decoding\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
