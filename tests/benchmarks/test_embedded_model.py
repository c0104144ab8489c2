"""``make bench`` on two prompts: that it goes on where it was, and that README's table can be written from it."""

from __future__ import annotations

import json

import embedded_model
import pytest

import tables


def test_figures_are_those_that_the_tables_read(tmp_path, monkeypatch, capsys):
    arguments = [
        "--methods",
        "ar",
        "jacobi",
        "--windows",
        "16",
        "--prompts",
        "2",
        "--timed",
        "2",
        "--work",
        str(tmp_path / "work"),
        "-o",
        str(tmp_path / "figures.json"),
    ]
    embedded_model.main(arguments)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["method"], row["window"]) for row in figures["compression"]] == [("ar", 1), ("jacobi", 16)]
    plain, jacobi = figures["compression"]
    assert plain["tokens_per_forward"] == 1
    assert jacobi["tokens_per_forward"] > 2
    assert 0 <= jacobi["error"] < jacobi["tokens_per_forward"]
    assert 1 < jacobi["nll"] < 3
    beside_itself, timed = figures["wall_clock"]
    assert beside_itself["speed_up"] == 1
    assert timed["speed_up_range"][0] <= timed["speed_up"] <= timed["speed_up_range"][1]
    assert 0 < timed["share_outside_forward"] < 1
    table = tables.compression_table(figures)
    assert f"| `jacobi` | {jacobi['tokens_per_forward']:.2f} ± {jacobi['error']:.2f} | {timed['speed_up']:.2f}× at W = 16 |" in table
    assert "Held-out prompts: 2" in tables.conditions_line(figures)

    monkeypatch.setattr("sjd2.pipeline.decode", lambda *_, **__: pytest.fail("the model ran"))
    embedded_model.main(arguments)
    again = json.loads((tmp_path / "figures.json").read_text())
    assert (again["compression"], again["wall_clock"]) == (figures["compression"], figures["wall_clock"])
