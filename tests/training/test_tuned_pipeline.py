"""Decoding a tuned model as it was tuned, and an untuned one with a warning."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import pytest

from sjd2 import PRESETS, TextToImagePipeline
from sjd2.denoising import Denoising, NoiseLevels
from sjd2.training import TuningNoise, save_tuned
from support.tuning import load_model

NOISE = TuningNoise(NoiseLevels.karras(2), timesteps=False, normalise=False)


@pytest.fixture
def tuned(folder, tmp_path) -> TextToImagePipeline:
    adapter = load_model(folder)
    save_tuned(adapter, NOISE, tmp_path / "tuned")
    assert adapter.denoising == NOISE.denoising
    return TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")


class _SeenEnoughError(Exception):
    """Nothing has to be decoded."""


def denoising_of(pipeline, monkeypatch, method) -> Denoising | None:
    """What the loop is told."""
    seen = []

    def decode(model, prompt, layout, processing, preset, *arguments, **options):
        seen.append(preset.denoising)
        raise _SeenEnoughError

    monkeypatch.setattr("sjd2.pipeline.decode", decode)
    with pytest.raises(_SeenEnoughError):
        pipeline("a bag", method=method)
    return seen[0]


def test_levels_timesteps_and_normalisation_are_the_models(tuned, monkeypatch):
    found = denoising_of(tuned, monkeypatch, "sjd2")
    assert found == replace(PRESETS["sjd2"].denoising, levels=NOISE.levels, timesteps=False, normalise=False)


def test_a_preset_is_taken_as_it_is(tuned, monkeypatch):
    preset = replace(PRESETS["sjd2"], denoising=Denoising(NoiseLevels.karras(5), clean=3))
    assert denoising_of(tuned, monkeypatch, preset) == preset.denoising


def test_methods_without_noise_are_left_alone(tuned, monkeypatch):
    assert denoising_of(tuned, monkeypatch, "mc-sjd") is None


def test_a_tuned_model_decodes_with_every_method_without_a_warning(tuned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in PRESETS:
            assert tuned("a bag", method=method).tokens.shape == (1, 16)


def test_an_untuned_model_warns_once_and_decodes(folder):
    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu")
    assert pipeline.adapter.denoising is None
    with pytest.warns(UserWarning, match=r"sjd2 feeds noise, and this model was not tuned for it: .* exact .*`sjd2 finetune`"):
        first = pipeline("a bag", method="sjd2").tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = pipeline("a bag", method=PRESETS["sjd2"]).tokens
    assert first.tolist() == second.tolist()


def test_the_warning_promises_nothing_that_the_method_does_not(folder):
    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu")
    with pytest.warns(UserWarning, match=r"sjd2-relaxed feeds noise, .*: the pictures may suffer, and it takes more forwards"):
        pipeline("a bag", method="sjd2-relaxed")


@pytest.mark.parametrize(
    "entry",
    [
        {"times": [0, 0.5, 1], "timesteps": True},
        {"times": [0, 0.5, 1], "timesteps": True, "normalise": True, "more": 1},
        {"times": [0, 0.5, 1], "timesteps": 1, "normalise": True},
        {"times": [0.1, 0.5], "timesteps": True, "normalise": True},
        {"times": [0, "x"], "timesteps": True, "normalise": True},
        {"times": 3, "timesteps": True, "normalise": True},
        7,
    ],
)
def test_a_damaged_entry_of_the_configuration_is_named(folder, tmp_path, entry):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["sjd2"]["denoising"] = entry
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be loaded: sjd2.denoising: "):
        TextToImagePipeline.from_pretrained(tmp_path / "model", device="cpu")


def test_a_folder_with_other_files_is_not_written_to(folder, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        save_tuned(load_model(folder), NOISE, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note.txt"]
