"""Denoising changes drafts and nothing else: strict SJD2 has the law of AR sampling, and with frozen noise its very tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sjd2.decoding import PRESETS, TokenLayout, decode, loop
from sjd2.denoising import Denoising, NoiseLevels
from sjd2_kernels import LogitsProcessing, Rule, verify
from support.law import FALSE_ALARM, Cell, agreement
from support.tables import TableModel

LEVELS = NoiseLevels.karras(2)
WINDOWS = {
    "born as noise": (4, Denoising(LEVELS, clean=1, per_level=1)),
    "clean front": (5, Denoising(LEVELS, clean=2, per_level=2)),
    "longer than the image": (7, Denoising(LEVELS, clean=3, per_level=1)),
    "all clean": (4, Denoising(LEVELS, clean=4)),
}
RULES = [Rule.FRESH, Rule.COUPLED, Rule.GUMBEL_TAIL, Rule.GUMBEL]


def preset(window: str, rule: Rule = Rule.COUPLED, **denoising):
    slots, settings = WINDOWS[window]
    return replace(PRESETS["sjd2"], rule=rule, window=slots, denoising=replace(settings, **denoising))


def assert_law(cell: Cell, method) -> None:
    found = agreement(cell, method)
    assert found.holds, found


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rule", [Rule.FRESH, Rule.COUPLED])
def test_every_window_has_the_law_of_ar(window, rule):
    assert_law(Cell(rows=40_000, seed=11), preset(window, rule))


@pytest.mark.parametrize("settings", [{"timesteps": False}, {"normalise": False}], ids=["no timesteps", "no normalisation"])
def test_without_timesteps_or_normalisation_the_law_is_the_same(settings):
    assert_law(Cell(rows=40_000, seed=12), preset("clean front", **settings))


@pytest.mark.parametrize("rule", RULES)
def test_processing_guidance_forced_slots_and_ends_have_the_law_of_ar(rule):
    cell = Cell(
        vocab_size=4,
        rows=40_000,
        processing={"guidance_scale": 1.7, "temperature": 0.8, "top_k": 3, "top_p": 0.95, "allowed": torch.tensor([True, True, True, False])},
        guided=True,
        forced=(-1, -1, 3, -1),
        end_id=2,
        seed=13,
    )
    assert_law(cell, preset("clean front", rule))


@pytest.mark.parametrize("initialisation", ["none", "uniform", "above"])
def test_every_initialisation_of_what_noise_predicts_has_the_law_of_ar(initialisation):
    assert_law(Cell(rows=40_000, seed=14), replace(preset("clean front"), initialisation=initialisation))


@pytest.mark.parametrize("window", WINDOWS)
def test_structural_tokens_outside_the_head_have_the_law_of_ar(window):
    assert_law(Cell(count=6, rows=40_000, forced=(-1, -1, 2, -1, -1, 2), outside=True, groups=((1, 6, 0), (3, 6, 1)), seed=16), preset(window))


def test_nearest_drafts_do_not_have_the_law_of_ar():
    """The published rule judges a draft by a distribution that it was not drawn from."""
    relaxed = replace(
        preset("born as noise"), denoising=replace(WINDOWS["born as noise"][1], clean=2, nearest=True), rule=Rule.KEEP_RATIO, keep_ratio=0.5
    )
    assert not agreement(Cell(rows=40_000, seed=15), relaxed).holds


def frozen_tokens(method, guided: bool = False) -> torch.Tensor:
    model = TableModel(3, 9, tables=4, seed=5)
    table, length = torch.arange(24) % 3, 1 + torch.arange(24) % 4
    prompt = model.prompt(table, length)
    if guided:
        prompt = model.prompt(torch.cat([table, torch.full_like(table, 3)]), torch.cat([length, torch.full_like(table, 2)]))
    forced = torch.full((24, 9), -1)
    forced[:, 4] = 1
    layout = TokenLayout(forced, 9 - torch.arange(24) % 5, row_stride=3)
    processing = LogitsProcessing.create(24, guidance_scale=2.0 if guided else 1.0, top_k=2)
    return decode(model, prompt, layout, processing, method, torch.arange(24)).tokens


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_with_frozen_noise_the_tokens_are_those_of_ar(window, guided):
    assert torch.equal(frozen_tokens(preset(window, Rule.GUMBEL), guided), frozen_tokens(PRESETS["ar"], guided))


def test_noisy_slots_that_count_as_clean_are_rejected(monkeypatch):
    """If they were committed behind, the tokens would come from predictions that saw noise."""

    def verify_instead(*arguments, **named):
        return verify(*arguments, **{**named, "clean": torch.ones_like(named["clean"])})

    monkeypatch.setattr(loop, "verify", verify_instead)
    found = agreement(Cell(rows=40_000, seed=11), preset("clean front"))
    assert found.p_value < FALSE_ALARM / 1000
    assert not found.holds
