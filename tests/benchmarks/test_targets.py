"""Targets are read off results as they should be: made-up ones, of which it is known what they reach."""

from __future__ import annotations

import json

import pytest
import targets
from gpu_steps import NAMES

import tables

H100 = {"device": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "transformers": "5.17.0", "commit": "0123456789ab"}
RATE = 3e12
DEFINITION = "definition (eager PyTorch)"


def iteration(model: str, batch: int, window: int, milliseconds: float, **more) -> dict:
    """A row of ``full_size.py``: weights that are read in 4 ms, and 2 % of an iteration outside the forward."""
    split = {"iteration": milliseconds, "forward": 0.98 * milliseconds, "verify": 0.005 * milliseconds, "cache": 0.005 * milliseconds}
    row = {"model": model, "batch": batch, "window": window, "weight_bytes": int(4e-3 * RATE), "milliseconds": milliseconds, "peak_bytes": 2**34}
    return row | {"eager_milliseconds": 30.0, "split": split | {"rest": 0.01 * milliseconds}} | more


def full_size(model: str = "Lumina-mGPT 7B", **changes) -> dict:
    ar = {"model": model, "end_to_end": 1, "window": 1, "tokens": 2400, "forwards": 2400, "seconds": 12.0}
    rows = [
        iteration(model, 1, 1, changes.get("ar", 5.0)),
        iteration(model, 1, 64, changes.get("wide", 8.0), published_milliseconds=40.0),
        iteration(model, 8, 64, changes.get("batch", 12.0)),
        ar,
        ar | {"end_to_end": 4, "window": 64, "forwards": 600, "seconds": changes.get("seconds", 4.0)},
    ]
    return {"conditions": H100, "copy_bytes_per_second": RATE, "rows": rows}


def fused_ops(microseconds: float = 20.0, percent: float = 90.0) -> dict:
    rows = []
    for batch in (1, 4, 8):
        for vocab in (*targets.SLICED, *targets.LARGE):
            for cache in ("hot", "flushed"):
                place = {"batch": batch, "window": 96, "vocab": vocab, "cache": cache, "whole": True}
                for op in ("verify fresh", "sample draft"):
                    rows.append(place | {"op": op, "implementation": "sjd2 triton", "p50": microseconds, "percent_of_floor": percent})
                    rows.append(place | {"op": op, "implementation": DEFINITION, "p50": 30 * microseconds, "percent_of_floor": 3.0})
        rows.append({**rows[0], "op": "denoise", "cache": "flushed", "vocab": 4096, "batch": batch})
    peer = next(row for row in rows if row["implementation"] == DEFINITION and row["cache"] == "flushed")
    rows.append(peer | {"implementation": "torch.compile of the definition", "p50": 4 * microseconds})
    rows.append(peer | {"implementation": "vllm (search only)", "whole": False, "p50": 1.0})
    return {"conditions": H100, "copy_bytes_per_second": RATE, "rows": rows}


def cpu(share: float = 0.1) -> dict:
    rows = [
        {"method": "ar", "window": 1, "seconds": 1.0, "share_outside_forward": 0.1},
        {"method": "jacobi", "window": 16, "seconds": 0.4, "share_outside_forward": share},
        {"method": "jacobi", "window": 64, "seconds": 0.5, "share_outside_forward": 0.9},
    ]
    return {"conditions": {"device": "AMD EPYC, 2 threads"}, "wall_clock": rows}


def suite(**outcomes: str) -> dict:
    return {"conditions": H100, "steps": {name: {"outcome": outcomes.get(name.replace(" ", "_"), "passed"), "seconds": 1.0} for name in NAMES}}


def verdicts(**results) -> dict[str, str]:
    """Of the targets that contain a word, by that word."""
    found = targets.targets(results)
    words = ("1.3 ×", "2 × one of AR", "4 × faster", "3 % of", "0.7 ×", "batch 8", "30 µs", "both logits", "fastest peer", "eager top-k", "copy rate")
    words += ("15 %", "0.9 of", "natively", "law tests", "all other tests", "sanitizer")
    return {word: one.verdict for word in words for one in found if word in one.text and one.verdict != "a test"}


def test_everything_is_met_by_results_that_meet_it():
    found = verdicts(full_size=full_size(), fused_ops=fused_ops(), cpu=cpu(), suite=suite())
    assert len(found) == 17
    assert set(found.values()) == {"met"}


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        ({"full_size": full_size(ar=5.3)}, {"1.3 ×"}),
        ({"full_size": full_size(wide=10.3)}, {"2 × one of AR", "4 × faster"}),
        ({"full_size": full_size(batch=16.1)}, {"batch 8"}),
        ({"full_size": full_size(seconds=4.4)}, {"0.7 ×"}),
        ({"fused_ops": fused_ops(microseconds=30.1)}, {"30 µs"}),
        ({"fused_ops": fused_ops(percent=49.0)}, {"both logits", "copy rate"}),
        ({"cpu": cpu(share=0.16)}, {"15 %"}),
        ({"suite": suite(kernel_tests="failed: exit code 1")}, {"natively"}),
        ({"suite": suite(racecheck="cut off after 230 s")}, {"sanitizer"}),
    ],
)
def test_one_figure_that_falls_short_is_one_target_missed(results, missed):
    found = verdicts(**{"full_size": full_size(), "fused_ops": fused_ops(), "cpu": cpu(), "suite": suite()} | results)
    assert {word for word, verdict in found.items() if verdict == "not met"} == missed


def test_outside_the_forward_the_worst_window_counts():
    results = full_size()
    results["rows"][1]["split"]["forward"] = 0.96 * 8.0
    assert verdicts(full_size=results)["3 % of"] == "not met"


def test_what_was_not_run_is_not_measured():
    found = verdicts()
    assert set(found.values()) == {"not measured"}
    results = full_size()
    results["rows"] = [{"model": "Emu3-Gen 8B", "window": 1, "batch": 1, "not run": "OutOfMemoryError: no room"}, *results["rows"][1:2]]
    found = verdicts(full_size=results, suite=suite(memcheck="not run: compute-sanitizer is not on this machine"))
    assert found["1.3 ×"] == found["sanitizer"] == "not measured"
    assert found["4 × faster"] == "met"


def test_some_sizes_can_miss_a_target_and_not_meet_it():
    results = fused_ops()
    results["rows"] = [row for row in results["rows"] if row["vocab"] == 1_000]
    assert verdicts(fused_ops=results)["30 µs"] == "not measured"
    slow = fused_ops(microseconds=31)
    slow["rows"] = [row for row in slow["rows"] if row["vocab"] == 1_000]
    assert verdicts(fused_ops=slow)["30 µs"] == "not met"


def test_a_trial_on_a_cpu_meets_and_misses_nothing():
    here = {
        name: {**made(), "conditions": {"device": "AMD EPYC"}}
        for name, made in {"full_size": full_size, "fused_ops": fused_ops, "suite": suite}.items()
    }
    assert set(verdicts(**here).values()) == {"not measured"}


def test_the_summary_counts_and_names_the_figures(tmp_path):
    for name, made in {"full_size": full_size, "fused_ops": fused_ops, "suite": suite}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(made()))
    text = targets.summary(targets.load(tmp_path))
    assert "Lumina-mGPT 7B 1.25×" in text
    assert "verify fresh B 1 V 1,000 20.00 µs (the most of 4 values)" in text
    assert text.endswith("targets: 17 met, 0 not met, 0 not measured, 5 a test")


def test_tables_of_a_gpu_say_that_there_are_none_or_show_them(tmp_path):
    page = "".join(f"<!-- table {name} -->\n<!-- end -->\n" for name in ("targets", "iterations", "fused_ops"))
    empty = tables.filled(page, tmp_path)
    assert empty.count("*Not measured on a GPU.*") == 2
    assert "| not measured |" in empty
    (tmp_path / "gpu").mkdir()
    rows = full_size()
    rows["rows"].append({"model": "Emu3-Gen 8B", "window": 128, "batch": 8, "not run": "OutOfMemoryError: no room"})
    for name, made in {"full_size": rows, "fused_ops": fused_ops()}.items():
        (tmp_path / "gpu" / f"{name}.json").write_text(json.dumps(made))
    shown = tables.filled(page, tmp_path)
    assert "| Lumina-mGPT 7B | 1 | 64 | 8.00 | 2.00× | 7.840 | 0.040 | 0.040 | 0.080 | 30.0 | 40.0 | 16.0 GiB |" in shown
    assert "| Emu3-Gen 8B | 8 | 128 | not run: OutOfMemoryError: no room |" in shown
    assert "- Lumina-mGPT 7B, `sjd2`, W = 64, 4 tokens of every forward: 4.00 s for 2,400 tokens in 600 forwards." in shown
    assert "| verify fresh | 1 | 1,000 | 20.0 | 20.0 | 90 % | 30× |" in shown
    widths = {line.count("|") for line in shown.splitlines() if line.startswith(("| Lumina", "| Emu3", "| model"))}
    assert widths == {13}
