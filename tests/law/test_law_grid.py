"""The full grid of the law test, a million ragged rows a cell: ``make test-full``."""

from __future__ import annotations

import itertools

import pytest
import torch

from sjd2.decoding import INITIALISATIONS, PRESETS, resolve_preset
from support.law import Cell, agreement, with_noise

pytestmark = pytest.mark.full

ROWS = 1_000_000
CELLS = {
    "plain": Cell(rows=ROWS),
    "guided": Cell(rows=ROWS, guided=True, processing={"guidance_scale": 2.5}, seed=11),
    "cold": Cell(rows=ROWS, processing={"temperature": 0.6}, seed=12),
    "top-k": Cell(rows=ROWS, vocab_size=4, processing={"top_k": 2}, seed=13),
    "top-p": Cell(rows=ROWS, vocab_size=4, processing={"top_p": 0.7}, seed=14),
    "forced": Cell(rows=ROWS, forced=(-1, 2, -1, 0), seed=15),
    "ends": Cell(rows=ROWS, end_id=1, seed=16),
    "allowed": Cell(rows=ROWS, vocab_size=4, processing={"allowed": torch.tensor([True, False, True, True])}, seed=17),
    "long": Cell(rows=ROWS, vocab_size=3, count=6, groups=((2, 6, 0), (1, 5, 1), (5, 4, 2)), row_stride=3, seed=18),
}
# A grid wider than the window: what is above has often left it.
CELLS["wide"] = Cell(rows=ROWS, count=6, row_stride=4, groups=((1, 6, 0), (3, 6, 1)), seed=19)
LOSSLESS = [name for name, preset in PRESETS.items() if preset.exact == "law"]


@pytest.mark.parametrize("method", [*LOSSLESS, "jacobi"])
@pytest.mark.parametrize("window", [2, 4, 8])
@pytest.mark.parametrize("cell", CELLS)
def test_law(method, window, cell):
    found = agreement(CELLS[cell], with_noise(resolve_preset(method, window=window)))
    assert found.holds, found


@pytest.mark.parametrize(("method", "initialisation"), list(itertools.product(LOSSLESS, INITIALISATIONS)))
@pytest.mark.parametrize("cell", ["ends", "long", "wide"])
def test_law_of_every_initialisation(method, initialisation, cell):
    found = agreement(CELLS[cell], with_noise(resolve_preset(method, window=3, initialisation=initialisation)))
    assert found.holds, found
