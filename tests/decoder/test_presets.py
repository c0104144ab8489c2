"""Presets and their settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sjd2.decoding import PRESETS, resolve_preset
from sjd2.denoising import Denoising, NoiseLevels
from sjd2_kernels import Rule


def test_only_the_ratio_rule_is_called_inexact():
    assert [name for name, preset in PRESETS.items() if preset.exact == "none"] == ["sjd++", "sjd2-relaxed"]
    assert {preset.rule for preset in PRESETS.values() if preset.exact == "tokens"} == {Rule.GUMBEL}


def test_settings_replace_the_presets():
    preset = resolve_preset("sjd++", window=5, initialisation="above", keep_ratio=0.2)
    assert (preset.window, preset.initialisation, preset.keep_ratio, preset.rule) == (5, "above", 0.2, Rule.KEEP_RATIO)
    assert resolve_preset(preset) is preset
    assert PRESETS["sjd++"].window != 5


def test_denoising_methods_take_clean_slots_and_levels():
    preset = resolve_preset("sjd2", clean=12, levels=3)
    assert (preset.denoising.clean, preset.denoising.levels) == (12, NoiseLevels.karras(3))
    assert resolve_preset("sjd2-relaxed", clean=0.5).denoising.nearest
    assert resolve_preset("sjd2", levels=NoiseLevels((0.0, 1.0))).denoising.levels.times == (0.0, 1.0)


def test_by_its_name_a_method_is_as_the_model_was_tuned_and_what_is_given_goes_before_it():
    tuned = Denoising(NoiseLevels((0.0, 0.5, 1.0)), timesteps=False)
    assert resolve_preset("sjd2", tuned=tuned).denoising == tuned
    assert resolve_preset("sjd2", tuned=tuned, clean=9).denoising == replace(tuned, clean=9)
    assert resolve_preset("sjd2", tuned=tuned, levels=1).denoising == replace(tuned, levels=NoiseLevels.karras(1))
    assert resolve_preset(PRESETS["sjd2"], tuned=tuned) is PRESETS["sjd2"]
    assert resolve_preset("mc-sjd", tuned=tuned) is PRESETS["mc-sjd"]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sjd3", {}, "method: expected one of ar, jacobi, sjd, .*, got 'sjd3'"),
        ("sjd", {"window": 0}, "window: expected a whole number >= 1, got 0"),
        ("sjd", {"window": -4}, "window: expected a whole number >= 1, got -4"),
        ("sjd", {"window": 2.5}, "window: expected a whole number >= 1, got 2.5"),
        ("sjd", {"window": "8"}, "window: expected a whole number >= 1, got '8'"),
        (["sjd"], {}, r"method: expected one of ar, .*, got \['sjd'\]"),
        ("ar", {"window": 2}, "window: ar decodes one token per forward"),
        ("sjd", {"initialisation": "right"}, "initialisation: expected one of none, uniform, .*, got 'right'"),
        ("sjd", {"keep_ratio": 0.5}, "keep_ratio: only sjd\\+\\+ and sjd2-relaxed have one"),
        ("sjd++", {"keep_ratio": -1.0}, "keep_ratio: expected a number >= 0, got -1.0"),
        ("sjd++", {"keep_ratio": "0.3"}, "keep_ratio: expected a number, got '0.3'"),
        ("mc-sjd", {"clean": 0.5}, "clean: only methods that denoise have it \\(sjd2, sjd2-relaxed\\), got 0.5 for mc-sjd"),
        ("jacobi", {"levels": 3}, "levels: only methods that denoise have it .*, got 3 for jacobi"),
        ("sjd2", {"clean": 1.5}, "clean: expected a whole number >= 1, or a share .*, got 1.5"),
        ("sjd2", {"levels": 0}, "levels: expected a whole number >= 1, got 0"),
        ("sjd2", {"levels": "3"}, "levels: expected a whole number >= 1, got '3'"),
        ("sjd++", {"keep_ratio": float("nan")}, "keep_ratio: expected a number >= 0, got nan"),
    ],
)
def test_bad_settings_are_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        resolve_preset(method, **settings)
