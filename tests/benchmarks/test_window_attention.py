"""The benchmark of attention: floors, and everyone compared with the model's own before being timed."""

from __future__ import annotations

import json

import pytest
import window_attention
from transformers import AttentionInterface

from sjd2.attention import ATTENTIONS, interface
from sjd2_kernels import window_attention as op

EMBEDDED = ["--device", "cpu", "--models", "embedded (TinyScenes)", "--window", "4", "--repeats", "2"]


def run(tmp_path, *more):
    path = tmp_path / "figures.json"
    code = window_attention.main([*EMBEDDED, "-o", str(path), *more])
    return code, json.loads(path.read_text())


def test_rows_have_floors_and_reasons(tmp_path, capsys):
    code, figures = run(tmp_path, "--batch", "1", "2")
    assert code == 0
    rows = figures["rows"]
    places = [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [(row["batch"], row["timesteps"]) for row in rows] == [place for place in places for _ in range(3)] + places
    assert [row["attention"] for row in rows[12:]] == ["flex"] * 4, "who compiles for long is last"
    assert {row["attention"] for row in rows if "p50" in row} == {"model"}
    assert all("not run" in row for row in rows if row["attention"] != "model")
    # 64 places of a prompt, half of 256 tokens, half of the window; two rows of keys and values of 4 heads that are 64 wide, in bfloat16
    first = rows[0]
    assert first["columns"] == (63 + 256 + 4 + 4) // 2
    assert first["floor_bytes"] == 2 * 2 * 2 * first["columns"] * 4 * 64
    assert rows[6]["floor_bytes"] == 2 * first["floor_bytes"]
    assert "of the floor's rate" in capsys.readouterr().out


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_who_is_wrong_is_not_timed(tmp_path, monkeypatch, off):
    monkeypatch.setattr(window_attention, "obstacle", lambda name, *rest, **named: None if name in ("model", "triton") else "no")
    monkeypatch.setattr(interface, "window_attention", lambda *a, backend, **named: op(*a, backend="torch", **named))
    own = AttentionInterface._global_mapping[ATTENTIONS["triton"]]
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTIONS["triton"], lambda *a, **named: (own(*a, **named)[0] + off, None))
    _, figures = run(tmp_path)
    row = next(row for row in figures["rows"] if row["attention"] == "triton")
    assert ("p50" in row) == (off == 0)
    assert row.get("not run", "off by 5.0e-01") == "off by 5.0e-01"
