"""How the shipped weights are tuned, and what the model card says of it."""

import json
from dataclasses import replace

import torch

from sjd2 import load_adapter
from sjd2.denoising import Denoising
from sjd2.tiny_scenes.card_tuning import tuning_section
from sjd2.tiny_scenes.scenes import SceneBatch
from sjd2.tiny_scenes.tune import SETTINGS, tune
from sjd2.training import DraftSettings, TuningNoise
from support.tuning import write_model

LOG = {"command": {"steps": 7, "batch_size": 8}, "examples": 10, "held_out": 1, "seconds": 12.3}


def scenes(seed: int) -> SceneBatch:
    zeros = torch.zeros(4, dtype=torch.int64)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return SceneBatch(pixels, ["a red coat on a yellow background"] * 4, zeros, zeros, zeros)


def test_the_card_tells_of_tuning():
    sets = {name: scenes(seed) for seed, name in enumerate(("training", "held out"))}
    tuned, base = load_adapter(None, device="cpu"), load_adapter(None, device="cpu")
    tuned.denoising = Denoising()
    with torch.no_grad():  # a model that says the same everywhere, so that the columns differ
        tuned.model.lm_head.weight.mul_(0.0)
    section = tuning_section(tuned, base, LOG, sets, scenes=2)
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert rows[0] == "| | base | tuned |"
    assert [row.split(" | ")[0] for row in rows[1:3]] == ["| clean: training", "| clean: held out"]
    assert rows[3].startswith("| level 1, t = 0.")
    assert len(rows) == 1 + 2 + tuned.denoising.levels.steps
    figures = [[float(cell) for cell in row.strip("| ").split(" | ")[1:]] for row in rows[1:]]
    assert all(abs(uniform - 6.908) < 1e-3 and before != uniform for before, uniform in figures)
    assert "7 steps of 8 images" in section
    assert "11 prompts" in section
    assert "12 seconds" in section


def test_a_model_that_is_not_tuned_has_no_such_section():
    adapter = load_adapter(None, device="cpu")
    adapter.denoising = None
    assert tuning_section(adapter, None, {}, {}, scenes=2) == ""


def test_tuning_gives_a_whole_folder_and_stops_when_there_is_one(tmp_path, capsys):
    base, output = write_model(tmp_path / "base"), tmp_path / "tuned"
    (base / "judge.safetensors").write_bytes(b"weights of the classifier")
    (base / "training_log.json").write_text('{"model": [{"scenes": 3}]}')
    drafts = DraftSettings(pool=4, first=2, renewed=1, every=1)
    settings = replace(SETTINGS, noise=TuningNoise(windows=1, window=4), drafts=drafts, steps=1, batch_size=2, held_out=0.0)
    tune(base, output, settings)
    log = json.loads((output / "training_log.json").read_text())
    assert log["model"] == [{"scenes": 3}]
    assert log["tuning"]["command"]["steps"] == 1
    assert {path.name for path in base.iterdir()} <= {path.name for path in output.iterdir()}
    assert (output / "judge.safetensors").read_bytes() == b"weights of the classifier"
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    tune(base, output, settings)
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
