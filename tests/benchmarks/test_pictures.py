"""The comparison of pictures with those of an untuned model, on a few prompts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import pictures
import tables
from sjd2.adapters.registry import EMBEDDED_MODEL


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Runs ``pictures.py`` with two methods, without the Fréchet distance."""
    monkeypatch.setattr(pictures, "RUNS", {"ar": ("ar", {}), "jacobi": ("jacobi", {})})
    monkeypatch.setattr(pictures, "LOSSLESS", ["jacobi"])
    monkeypatch.setattr(pictures, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))

    def main(*arguments: str) -> dict:
        pictures.main(["--prompts", "2", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "pictures.json"), *arguments])
        return json.loads((tmp_path / "pictures.json").read_text())

    return SimpleNamespace(main=main, work=tmp_path / "work")


def test_lossless_methods_are_compared_with_the_untuned_model_on_request(few):
    without = few.main()
    assert "untuned" not in without
    assert tables.untuned_pictures_table(without) == ""
    drawn = {path: path.stat().st_mtime_ns for path in few.work.iterdir()}
    assert len(drawn) == 2

    results = few.main("--base", str(EMBEDDED_MODEL))
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn  # what was drawn before is not drawn again
    assert tables.pictures_table(results) == tables.pictures_table(without)
    found = results["untuned"]
    assert found["reference"] == "ar, untuned"
    assert found["comparisons"] == 2 * len(pictures.MEASURES)
    assert {row["run"] for row in found["rows"]} == {"ar, untuned", "ar", "jacobi"}
    table = tables.untuned_pictures_table(results)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["`ar, untuned`", "`ar`", "`jacobi`"]

    tokens = {number: torch.load(few.work / f"{number}.pt") for number in range(3)}
    assert tokens[2]["key"]["seed"] == 2 * pictures.SEED_STRIDE
    assert not torch.equal(tokens[2]["tokens"], tokens[0]["tokens"])  # seeds of its own


def test_tokens_of_other_weights_are_drawn_again(monkeypatch, tmp_path):
    calls = []

    def pipeline(prompts, **settings):
        calls.append(settings)
        return SimpleNamespace(tokens=torch.zeros(len(prompts), 256, dtype=torch.int64))

    for weights in ("some", "some", "others", "others"):
        monkeypatch.setattr(pictures, "weights_digest", lambda folder, weights=weights: weights)
        pictures.draw(pipeline, EMBEDDED_MODEL, "ar", ["a red coat"], tmp_path, {"temperature": 1.0})
    assert len(calls) == 2
    pictures.draw(pipeline, EMBEDDED_MODEL, "ar", ["a red coat"], tmp_path, {"temperature": 0.9})
    assert len(calls) == 3
