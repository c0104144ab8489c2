"""The curves of single pictures: what is stored is what the loop committed, and both plots are drawn from it."""

from __future__ import annotations

import json

import pytest
from advance import RESULT, by_one_forward, measure, plots
from PIL import Image

from ablation_plots import save
from sjd2.tiny_scenes.prompts import held_out_prompts

SETTINGS = {"window": 16, "guidance_scale": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def rows(pipeline):
    return measure(pipeline, ("mc-sjd", "sjd"), held_out_prompts(2), SETTINGS)


def test_what_is_measured_is_what_the_loop_committed(pipeline, rows):
    assert [row["method"] for row in rows] == ["mc-sjd", "mc-sjd", "sjd", "sjd"]
    reports = pipeline(held_out_prompts(2), method="sjd", **SETTINGS).reports
    for row, report in zip(rows[2:], reports, strict=True):
        assert (row["prompt"], row["seed"]) == (report.prompt, report.seed)
        assert len(row["committed"]) == report.forwards
        assert row["committed"][-1] == 256 > row["committed"][-2]
    counts = by_one_forward(rows, "sjd")
    assert counts.total() == sum(report.forwards for report in reports)
    assert sum(size * count for size, count in counts.items()) == 2 * 256
    assert min(counts) >= 1, "a forward commits at least one token"
    assert max(counts) <= 16


def test_both_plots_are_drawn(rows, tmp_path):
    written = save(plots({"rows": rows}), tmp_path)
    assert [path.name for path in written] == ["advance.png", "noise_levels.png"]
    assert all(Image.open(path).width > 500 for path in written)


def test_the_stored_pictures_are_whole():
    stored = json.loads(RESULT.read_text())
    assert len(stored["rows"]) == 3 * stored["prompts"]
    assert {row["committed"][-1] for row in stored["rows"]} == {256}
