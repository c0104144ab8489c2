"""The law of AR sampling: every lossless preset draws sequences from the exact joint distribution, and the lossy one does not."""

from __future__ import annotations

import pytest
import torch

from sjd2.decoding import INITIALISATIONS, PRESETS, resolve_preset
from support.law import Cell, agreement

LOSSLESS = [name for name, preset in PRESETS.items() if preset.exact != "none"]
SPECULATIVE = [name for name in LOSSLESS if name != "ar"]


def assert_law(cell: Cell, method: str, **settings) -> None:
    found = agreement(cell, resolve_preset(method, **settings))
    assert found.holds, found


@pytest.mark.parametrize("method", LOSSLESS)
@pytest.mark.parametrize("window", [3, 7], ids=["window<length", "window>length"])
def test_every_lossless_preset_has_the_law_of_ar(method, window):
    assert_law(Cell(), method, window=1 if method == "ar" else window)


@pytest.mark.parametrize("method", ["sjd", "mc-sjd", "gs-sjd"])
@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_every_initialisation_has_the_law_of_ar(method, initialisation):
    assert_law(Cell(rows=60_000, seed=1), method, window=3, initialisation=initialisation)


@pytest.mark.parametrize("method", ["sjd", "mc-sjd", "gs-sjd"])
@pytest.mark.parametrize("initialisation", ["above", "above-copy"])
def test_a_token_above_that_left_the_window_is_copied_with_a_one_hot_q(method, initialisation):
    cell = Cell(count=6, rows=60_000, row_stride=4, groups=((1, 6, 0), (3, 6, 1)), seed=4)
    assert_law(cell, method, window=2, initialisation=initialisation)


@pytest.mark.parametrize("method", SPECULATIVE)
def test_processing_guidance_forced_slots_and_ends_have_the_law_of_ar(method):
    cell = Cell(
        vocab_size=4,
        rows=100_000,
        processing={
            "guidance_scale": 1.7,
            "temperature": 0.8,
            "top_k": 3,
            "top_p": 0.95,
            "allowed": torch.tensor([True, True, True, False]),
        },
        guided=True,
        forced=(-1, -1, 3, -1),  # an id that sampling could not give
        end_id=2,
        seed=2,
    )
    assert_law(cell, method, window=4)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("method", ["sjd", "mc-sjd", "gs-sjd"])
def test_structural_tokens_outside_the_head_have_the_law_of_ar(method, initialisation):
    """Ends of lines of a 2 × 2 image, at which windows begin, end, and pass over both."""
    cell = Cell(count=6, rows=40_000, forced=(-1, -1, 2, -1, -1, 2), outside=True, row_stride=3, groups=((1, 6, 0), (3, 6, 1), (2, 5, 2)), seed=5)
    assert_law(cell, method, window=4, initialisation=initialisation)


@pytest.mark.parametrize("end_id", [0, 1])
def test_no_structural_token_outside_the_head_ends_a_row(end_id):
    assert_law(Cell(rows=60_000, forced=(-1, 2, -1, 2), outside=True, end_id=end_id, seed=6), "mc-sjd", window=3)


def test_a_longer_sequence_over_more_ids_has_the_law_of_ar():
    assert_law(Cell(vocab_size=5, count=4, rows=150_000, groups=((2, 4, 0), (1, 3, 1)), seed=3), "mc-sjd", window=3)


def test_keeping_by_ratio_is_seen_to_be_biased():
    """If the test could not reject sjd++ it would prove nothing about the others."""
    found = agreement(Cell(), resolve_preset("sjd++", window=4))
    assert found.p_value < 1e-12
    assert found.variation > found.floor
