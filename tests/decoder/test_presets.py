"""Presets and their settings."""

from __future__ import annotations

import pytest

from sjd2.decoding import PRESETS, resolve_preset
from sjd2_kernels import Rule


def test_only_the_ratio_rule_is_called_inexact():
    assert [name for name, preset in PRESETS.items() if preset.exact == "none"] == ["sjd++", "sjd2-relaxed"]
    assert {preset.rule for preset in PRESETS.values() if preset.exact == "tokens"} == {Rule.GUMBEL}


def test_settings_replace_the_presets():
    preset = resolve_preset("sjd++", window=5, initialisation="above", keep_ratio=0.2)
    assert (preset.window, preset.initialisation, preset.keep_ratio, preset.rule) == (5, "above", 0.2, Rule.KEEP_RATIO)
    assert resolve_preset(preset) is preset
    assert PRESETS["sjd++"].window != 5


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sjd3", {}, "method: expected one of ar, jacobi, sjd, .*, got 'sjd3'"),
        ("sjd", {"window": 0}, "window: expected a whole number >= 1, got 0"),
        ("sjd", {"window": -4}, "window: expected a whole number >= 1, got -4"),
        ("sjd", {"window": 2.5}, "window: expected a whole number >= 1, got 2.5"),
        ("ar", {"window": 2}, "window: ar decodes one token per forward"),
        ("sjd", {"initialisation": "right"}, "initialisation: expected one of none, uniform, .*, got 'right'"),
        ("sjd", {"keep_ratio": 0.5}, "keep_ratio: only sjd\\+\\+ and sjd2-relaxed have one"),
        ("sjd++", {"keep_ratio": -1.0}, "keep_ratio: expected a number >= 0, got -1.0"),
        ("sjd++", {"keep_ratio": float("nan")}, "keep_ratio: expected a number >= 0, got nan"),
    ],
)
def test_bad_settings_are_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        resolve_preset(method, **settings)
