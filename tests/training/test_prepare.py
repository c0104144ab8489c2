"""Images encoded beforehand, in one process or by a pool of actors, are the tokens that tuning makes of them."""

from __future__ import annotations

import json

import pytest

from sjd2.cli import main
from sjd2.cluster import Actors
from sjd2.training import prepare_tokens, read_examples
from support.cli import one_line_error
from support.tuning import load_model, write_images


def test_the_command_makes_what_tuning_takes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures = write_images(tmp_path / "pictures", 7)
    common = ["--model", str(folder), "--device", "cpu"]
    assert main(["tokens", "pictures", "-o", "made/tokens.jsonl", *common, "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == "pictures: 7 of 7 images encoded\nmade/tokens.jsonl: done\n"
    adapter = load_model(folder)
    expected, found = read_examples(pictures, adapter), read_examples("made/tokens.jsonl", adapter)
    assert found.digest() == expected.digest()
    assert len({tuple(row) for row in found.tokens.tolist()}) == 7
    tune = [*common, "--steps", "2", "--batch-size", "2", "--windows", "1", "--window", "4", "--held-out", "0", "--quiet"]
    assert main(["finetune", "--data", "made/tokens.jsonl", *tune, "-o", "of-tokens"]) == 0
    assert main(["finetune", "--data", "pictures", *tune, "-o", "of-pictures"]) == 0
    assert (tmp_path / "of-tokens/model.safetensors").read_bytes() == (tmp_path / "of-pictures/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "pictures/metadata.jsonl, line 5: 4.png cannot be read as an image"),
        (["--height", "4096"], "height"),
        (["--batch-size", "0"], "--batch-size: expected a whole number >= 1, got 0"),
        (["--ray"], "--device: expected none with --ray, where --gpus-per-actor says it, got cpu"),
    ],
)
def test_the_command_names_what_is_wrong_and_writes_nothing(folder, tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    pictures = write_images(tmp_path / "pictures", 7)
    (pictures / "4.png").write_bytes(b"no picture")
    assert main(["tokens", "pictures", "-o", "tokens.jsonl", "--model", str(folder), "--device", "cpu", "--quiet", *extra]) == 1
    assert message in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_actors_make_the_file_that_one_process_would(folder, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    pictures = write_images(tmp_path / "pictures", 7)
    output = tmp_path / "tokens.jsonl"
    actors = ["--ray", "--actors", "2", "--gpus-per-actor", "0", "--batch-size", "2"]
    assert main(["tokens", str(pictures), "-o", str(output), "--model", str(folder), *actors]) == 0
    assert capsys.readouterr().out == f"{pictures}: 7 of 7 images encoded\n{output}: done\n"
    alone = prepare_tokens(pictures, tmp_path / "alone.jsonl", model=folder, device="cpu")
    assert output.read_text() == alone.read_text()
    assert len({tuple(json.loads(line)["tokens"]) for line in output.read_text().splitlines()}) == 7
    assert not ray.is_initialized()


@pytest.mark.full
def test_an_image_that_an_actor_cannot_read_is_named_and_nothing_is_written(folder, tmp_path):
    pytest.importorskip("ray")
    pictures = write_images(tmp_path / "pictures", 7)
    (pictures / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 5: 4.png cannot be read as an image"):
        prepare_tokens(pictures, tmp_path / "tokens.jsonl", model=folder, actors=Actors(), batch_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("data", "output", "options", "kind", "message"),
    [
        ("pictures", "tokens.json", {}, ValueError, "output: expected a .jsonl file, got"),
        ("pictures", "tokens.jsonl", {"device": "cpu"}, ValueError, "device: expected none beside actors, whose device their gpus say, got cpu"),
        ("pictures", "tokens.jsonl", {"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1, got 0"),
        ("pictures", "pictures/0.png/tokens.jsonl", {}, OSError, "output: the folder"),
        ("nowhere", "tokens.jsonl", {}, FileNotFoundError, "data: nowhere is no folder"),
        ("empty", "tokens.jsonl", {}, ValueError, "data: expected metadata.jsonl in empty, found none"),
        ("none", "tokens.jsonl", {}, ValueError, "data: expected at least one record in none, got none"),
    ],
)
def test_what_is_wrong_is_named_before_a_cluster_is_started(folder, tmp_path, monkeypatch, data, output, options, kind, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sjd2.training.prepare.cluster", None)
    write_images(tmp_path / "pictures", 1)
    write_images(tmp_path / "none", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=message):
        prepare_tokens(data, output, model=folder, actors=Actors(), **options)
