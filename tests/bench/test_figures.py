"""From cells to figures: means, intervals, gains, tables, files, plots."""

from __future__ import annotations

import csv
import json
import statistics

import pytest
import torch
from PIL import Image

from sjd2 import PRESETS
from sjd2.bench import BenchSettings, draw_bench, embedded_measures, labels, summarise, table, variants_of, write_csv, write_json
from sjd2.bench.intervals import bootstrap_interval
from support.generic import generic_pipeline

SAMPLING = {"guidance_scales": [2.0], "temperatures": [1.0], "top_k": 20, "top_p": 1.0}


def cell(variant: int, first: int, seconds: float, forwards: int, tokens: list[int], histogram: dict[str, int]) -> dict:
    picture = {"prompt": f"prompt {first}", "seed": first, "forwards": forwards, "accepted_per_forward": len(tokens) / forwards - 1, "tokens": tokens}
    return {
        "variant": variant, "first": first, "seconds": seconds, "forward_seconds": seconds / 2, "peak_memory": 2**20 * (first + 1),
        "pictures": [picture | {"histogram": histogram}],
    }  # fmt: skip


@pytest.fixture
def known():
    """Two methods on three prompts, with figures that are known by heart."""
    settings = BenchSettings(("a", "b", "c"), tuple(variants_of(["ar", "jacobi"], windows=[8], **SAMPLING)))
    plain = [cell(0, first, 8.0, 4, [1, 2, 3, first], {"1": 4}) for first in range(3)]
    jacobi = [cell(1, first, seconds, forwards, [1, 2, 3, 0], histogram) for first, seconds, forwards, histogram in (
        (0, 4.0, 2, {"2": 2}), (1, 2.0, 1, {"4": 1}), (2, 8.0, 4, {"1": 4}),
    )]  # fmt: skip
    return settings, plain + jacobi


def test_figures_are_those_of_the_cells(known):
    plain, jacobi = summarise(*known)
    assert plain["tokens_per_forward"] == {"value": 1, "low": 1, "high": 1}
    assert "speed_up" not in plain
    assert jacobi["tokens_per_forward"]["value"] == pytest.approx((2 + 4 + 1) / 3)
    assert 1 <= jacobi["tokens_per_forward"]["low"] < (2 + 4 + 1) / 3 < jacobi["tokens_per_forward"]["high"] <= 4
    assert jacobi["forwards"]["value"] == pytest.approx(7 / 3)
    assert jacobi["accepted_per_forward"]["value"] == pytest.approx((1 + 3 + 0) / 3)
    assert jacobi["histogram"] == {"1": 4, "2": 2, "4": 1}
    assert [jacobi[f"{name}seconds_per_picture"] for name in ("", "forward_", "other_")] == [4, 2, 2]
    assert jacobi["speed_up"]["value"] == 2  # the median of 2, 4 and 1
    assert (jacobi["speed_up"]["least"], jacobi["speed_up"]["most"]) == (1, 4)
    assert jacobi["same_tokens_as_ar"] == pytest.approx(1 / 3)
    assert jacobi["peak_memory"] == 3 * 2**20


def test_seconds_that_cannot_be_split_are_left_out_and_the_whole_is_drawn(known, tmp_path):
    settings, cells = known
    for one in cells:
        one["forward_seconds"] = None
    rows = summarise(settings, cells)
    assert [(row["seconds_per_picture"], row["forward_seconds_per_picture"], row["other_seconds_per_picture"]) for row in rows] == [
        (8, None, None),
        (4, None, None),
    ]
    assert "in forward" not in table(rows)
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    draw_bench(rows, tmp_path)


def test_gains_are_taken_under_the_same_sampling_settings_alone():
    settings = BenchSettings(("a",), tuple(variants_of(["ar", "jacobi"], guidance_scales=[1.0, 3.0], temperatures=[1.0], top_k=0, top_p=1.0)))
    assert [(variant.method, variant.options["guidance_scale"]) for variant in settings.variants] == [
        ("ar", 1),
        ("ar", 3),
        ("jacobi", 1),
        ("jacobi", 3),
    ]
    cells = [cell(index, 0, seconds, 1, [1], {"1": 1}) for index, seconds in enumerate((2.0, 6.0, 1.0, 1.0))]
    assert [row.get("speed_up", {}).get("value") for row in summarise(settings, cells)] == [None, None, 2, 6]


def test_quality_is_of_the_pictures_that_a_measure_speaks_of(known):
    rows = summarise(*known, lambda prompts, tokens: {"first": [float(row[0]) for row in tokens], "some": [0.5], "none": []})
    assert rows[0]["quality"]["first"]["value"] == 1
    assert rows[0]["quality"]["some"] == {"value": 0.5, "low": None, "high": None}
    assert "none" not in rows[0]["quality"]


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
    low, high = bootstrap_interval(values, lambda draws: draws.mean(1))
    error = 1.96 * statistics.stdev(values.tolist()) / 20
    assert low == pytest.approx(float(values.mean()) - error, abs=0.06 * error)
    assert high == pytest.approx(float(values.mean()) + error, abs=0.06 * error)
    assert bootstrap_interval(values, lambda draws: draws.mean(1)) == (low, high)
    assert bootstrap_interval(values[:1], lambda draws: draws.mean(1)) is None


def test_variants_are_every_method_with_every_setting():
    found = variants_of(["ar", "sjd", "sjd++"], windows=[8, 16], keep_ratio=0.4, **SAMPLING)
    shown = [(variant.method, variant.options["window"], variant.options["keep_ratio"]) for variant in found]
    assert shown == [("ar", 1, None), ("sjd", 8, None), ("sjd", 16, None), ("sjd++", 8, 0.4), ("sjd++", 16, 0.4)]
    assert [variant.options["window"] for variant in variants_of(["sjd", "mc-sjd"], **SAMPLING)] == [PRESETS["sjd"].window, PRESETS["mc-sjd"].window]
    assert labels([variant.to_dict() for variant in found]) == ["ar", "sjd, W = 8", "sjd, W = 16", "sjd++, W = 8", "sjd++, W = 16"]


def test_methods_that_denoise_have_clean_slots_and_levels_and_any_but_ar_an_automatic_window():
    found = variants_of(["ar", "sjd", "sjd2"], windows=["auto", 8], clean=4, levels=3, **SAMPLING)
    shown = [(variant.method, *(variant.options[name] for name in ("window", "clean", "levels"))) for variant in found]
    assert shown == [
        ("ar", 1, None, None),
        *[(method, window, *own) for method, own in (("sjd", (None, None)), ("sjd2", (4, 3))) for window in ("auto", 8)],
    ]
    assert labels([variant.to_dict() for variant in found])[-2:] == ["sjd2, W = auto", "sjd2, W = 8"]
    denoising = found[-1].preset.denoising
    assert (denoising.clean, denoising.levels.steps) == (4, 3)
    assert found[-2].preset.window == PRESETS["sjd2"].window, "where a preset is asked for, its own window stands in"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": []}, "methods: expected at least one"),
        ({"clean": 4}, "clean: only sjd2 and sjd2-relaxed have one, got 4 for sjd"),
        ({"levels": 4}, "levels: only sjd2 and sjd2-relaxed have one, got 4 for sjd"),
        ({"methods": ["sjd2"], "clean": 1.5}, "clean: expected a whole number >= 1, or a share of the window"),
        ({"methods": ["sjd2"], "levels": 0}, "levels: expected a whole number >= 1, got 0"),
        ({"methods": ["magic"]}, "method: expected one of ar, .*, got 'magic'"),
        ({"methods": ["sjd", "sjd"]}, "methods: expected every method and setting once, got sjd twice"),
        ({"windows": [0]}, "window: expected a whole number >= 1, got 0"),
        ({"keep_ratio": 0.3}, r"keep_ratio: only sjd\+\+ and sjd2-relaxed have one, got 0.3 for sjd"),
        ({"initialisation": "right"}, "initialisation: expected one of"),
    ],
)
def test_variants_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        variants_of(**({"methods": ["sjd"]} | SAMPLING | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ()}, "prompts: expected at least one, got none"),
        ({"variants": ()}, "variants: expected at least one, got none"),
        ({"num_images": 0}, "num_images: expected a whole number >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number in"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        BenchSettings(**({"prompts": ("a fox",), "variants": tuple(variants_of(["ar"], **SAMPLING))} | change))


def test_the_table_shows_the_figures_and_leaves_out_what_nobody_measured(known):
    settings, cells = known
    lines = table(summarise(settings, cells)).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "ar", "jacobi"]
    assert "2.33 (1.00–4.00)" in lines[2]
    assert "2.00 (1.00–4.00)" in lines[2]
    assert "3 MiB" in lines[2]
    for one in cells:
        one["peak_memory"] = None
    assert "peak memory" not in table(summarise(settings, cells))
    assert "× ar" not in table(summarise(settings, cells[:3]))


def test_files_hold_the_figures(known, tmp_path):
    rows = summarise(*known)
    write_json(tmp_path / "rows.json", rows)
    assert json.loads((tmp_path / "rows.json").read_text()) == json.loads(json.dumps(rows))
    write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        plain, jacobi = csv.DictReader(file)
    assert plain["speed_up_value"] == ""
    assert float(jacobi["speed_up_value"]) == 2
    assert float(jacobi["tokens_per_forward_high"]) == rows[1]["tokens_per_forward"]["high"]
    assert json.loads(jacobi["histogram"]) == {"1": 4, "2": 2, "4": 1}


def test_plots_are_pictures_and_acceptance_is_drawn_where_something_varies(known, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    drawn = draw_bench(summarise(*known), tmp_path)
    assert [path.name for path in drawn] == ["tokens_per_forward.png", "histogram.png", "seconds.png"]
    assert all(Image.open(path).width > 300 for path in drawn)

    grid = variants_of(["ar", "jacobi"], guidance_scales=[1.0, 3.0], temperatures=[0.5, 1.0], top_k=0, top_p=1.0)
    cells = [cell(index, first, 1.0, 1 + index % 3, [1, 2, 3], {"1": 3}) for index in range(len(grid)) for first in range(2)]
    drawn = draw_bench(summarise(BenchSettings(("a", "b"), tuple(grid)), cells), tmp_path / "grid")
    assert [path.name for path in drawn][-1] == "acceptance.png"


def test_the_embedded_model_judges_its_own_pictures(pipeline):
    measure = embedded_measures(pipeline.adapter)
    prompts = ["a red coat on a yellow background", "a bag"]
    output = pipeline(prompts, method="jacobi", output_type="tokens")
    found = measure(prompts, output.tokens.tolist())
    assert {name: len(values) for name, values in found.items()} == {"background_right": 1, "colour_right": 1, "garment_right": 2, "nll": 2}
    assert found["background_right"] == [1.0]
    assert 0.5 < min(found["nll"]) <= max(found["nll"]) < 4
    assert embedded_measures(generic_pipeline().adapter) is None
