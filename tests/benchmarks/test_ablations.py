"""The ablations: what is run, that an interrupted run goes on and nothing stale is read, and that tables and plots show the stored figures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch

import ablation_runs
import ablations
import tables
from ablation_cells import CLEAN, SCALES, STEPS, WINDOWS, Cell, Place, Plan
from ablation_figures import best_windows, compression, quality
from ablation_plots import PLOTS, plots, save
from ablation_runs import Outcome, Runs
from ablation_tables import ABLATION_TABLES
from sjd2 import PRESETS
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.bench.intervals import compare_ratio
from sjd2.denoising.window import Denoiser
from sjd2.tiny_scenes.prompts import held_out_prompts
from sjd2_kernels import Rule

PROMPTS = held_out_prompts(2)


class TinyPlan:
    """One group of two cells; what they are compared with is a third. Without guidance, to be quick."""

    def __init__(self, width: int, with_base: bool, tuned: object = None):
        self.groups = {
            "guidance": [Place({"method": name, "guidance_scale": 1.0}, Cell("tuned", PRESETS[name], 1.0)) for name in ("jacobi", "sjd")],
        }

    cells = Plan.cells


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Runs the tiny plan; returns the names of the methods that it ran, in order, and after how many it is to stop."""
    ran: list[str] = []
    stop = SimpleNamespace(after=None)
    run = Runs.run

    def counted(self, cell):
        if stop.after == len(ran):
            raise KeyboardInterrupt
        ran.append(cell.preset.name)
        return run(self, cell)

    monkeypatch.setattr(ablations, "Plan", TinyPlan)
    monkeypatch.setattr(Runs, "run", counted)
    output = tmp_path / "ablations.json"
    arguments = ["--images", "2", "--work", str(tmp_path / "work"), "-o", str(output)]
    return SimpleNamespace(ran=ran, stop=stop, output=output, work=tmp_path / "work", main=lambda: ablations.main(arguments))


def test_an_interrupted_run_goes_on_where_it_stopped(tiny, capsys):
    tiny.stop.after = 2
    with pytest.raises(KeyboardInterrupt):
        tiny.main()
    assert tiny.ran == ["mc-sjd", "jacobi"]
    assert not tiny.output.exists()
    kept = {path: path.stat().st_mtime_ns for path in tiny.work.iterdir()}
    assert len(kept) == 2

    tiny.stop.after = None
    tiny.ran.clear()
    tiny.main()
    assert tiny.ran == ["sjd"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    shown = capsys.readouterr().out
    assert "guidance: 2 cells, 3 to run" in shown
    assert "guidance: 2 cells, 1 to run" in shown

    results = json.loads(tiny.output.read_text())
    rows = results["groups"]["guidance"]["rows"]
    assert [row["method"] for row in rows] == ["jacobi", "sjd"]
    assert all(1 < row["tokens_per_forward"] < 16 and row["seconds"] > 0 and "to_mc_sjd" in row for row in rows)
    assert results["groups"]["guidance"]["images"] == 2

    tiny.ran.clear()
    tiny.main()
    assert tiny.ran == []
    assert json.loads(tiny.output.read_text())["groups"] == results["groups"]


def test_only_what_the_same_circumstances_gave_is_read(tmp_path, monkeypatch):
    def runs(folder: Path = EMBEDDED_MODEL, prompts=PROMPTS, **options) -> Runs:
        return Runs({"tuned": folder}, prompts, tmp_path / "work", **options)

    cell = Cell("tuned", replace(PRESETS["jacobi"], window=48), 1.0)
    first = runs()
    outcome = first.run(cell)
    read = first.stored(cell)
    assert torch.equal(read.tokens, outcome.tokens)
    assert torch.equal(read.tokens_per_forward, outcome.tokens_per_forward)
    assert first.is_stored(replace(cell, preset=replace(cell.preset, summary="other words")))

    others = [
        replace(cell, guidance_scale=1.5),
        replace(cell, preset=replace(cell.preset, window=47)),
        replace(cell, preset=replace(cell.preset, rule=Rule.COUPLED)),
        replace(cell, preset=replace(cell.preset, denoising=PRESETS["sjd2"].denoising)),
    ]
    assert not any(map(first.is_stored, others))
    assert not runs(prompts=PROMPTS[::-1]).is_stored(cell)
    assert not runs(batch_size=1).is_stored(cell)

    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, copy)
    (copy / "training_log.json").write_text("{}")
    assert runs(copy).is_stored(cell)  # the same weights in another place
    (copy / "generation_config.json").write_text('{"do_sample": true}')
    assert not runs(copy).is_stored(cell)

    monkeypatch.setattr(ablation_runs, "code_digest", lambda: "another version")
    assert not runs().is_stored(cell)


def test_a_setting_out_of_range_is_refused():
    for images in ("1", "221"):
        with pytest.raises(SystemExit):
            ablations.main(["--images", images])
    with pytest.raises(SystemExit):
        ablations.main(["--only", "nothing"])


PLAN = Plan(width=16, with_base=True)
PLACES = [pytest.param(name, id=name) for name in PLAN.groups]


def test_the_plan_has_what_is_to_be_varied():
    def seen(group: str, *names: str) -> set[tuple]:
        return {tuple(place.at[name] for name in names) for place in PLAN.groups[group]}

    methods = {(model, name, window) for model in ("tuned", "base") for name in PRESETS if name != "ar" for window in WINDOWS}
    assert seen("methods", "model", "method", "window") == methods | {("tuned", "ar", 1), ("base", "ar", 1)}
    assert seen("clean_steps", "clean", "steps") == {(clean, steps) for clean in CLEAN for steps in STEPS}
    assert seen("steps_window", "steps", "window") == {(steps, window) for window in WINDOWS for steps in STEPS}
    assert seen("guidance", "method", "guidance_scale") == {(name, scale) for name in ("mc-sjd", "sjd2") for scale in SCALES}
    assert {place.cell.preset.rule for place in PLAN.groups["updates"]} == set(Rule)
    untuned_only = [place for places in Plan(width=16, with_base=False).groups.values() for place in places if place.cell.model == "base"]
    assert untuned_only == []


@pytest.mark.parametrize("name", PLACES)
def test_places_say_what_their_cells_are(name):
    places = PLAN.groups[name]
    assert len({tuple(place.at.items()) for place in places}) == len(places)
    assert len({place.cell for place in places}) == len(places)
    for place in places:
        preset, denoising = place.cell.preset, place.cell.preset.denoising
        actual = {"window": preset.window, "model": place.cell.model, "method": preset.name, "guidance_scale": place.cell.guidance_scale}
        if denoising is not None:
            actual |= {"clean": denoising.clean, "per_level": denoising.per_level, "steps": denoising.levels.steps}
            actual |= {"normalise": denoising.normalise, "timesteps": denoising.timesteps}
        varied = {key: value for key, value in place.at.items() if key in actual}
        assert varied == {key: actual[key] for key in varied}
        assert place.cell.reference.preset == replace(PRESETS["mc-sjd"], window=64)


def test_inputs_are_those_of_the_forward():
    model = SimpleNamespace(image_embeddings=lambda: torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    noisy = [cell for cell in PLAN.cells(PLAN.groups) if cell.preset.denoising is not None]
    assert len(noisy) > 50
    for cell in noisy:
        denoiser = Denoiser(cell.preset.denoising, cell.preset.window, model, torch.device("cpu"))
        assert cell.inputs == cell.preset.window + len(denoiser.timesteps)
    assert Cell("tuned", PRESETS["mc-sjd"]).inputs == 64


def test_relaxed_cells_are_not_called_exact():
    for cell in PLAN.cells(PLAN.groups):
        preset, denoising = cell.preset, cell.preset.denoising
        relaxed = preset.name == "sjd++" or (denoising is not None and denoising.nearest)
        assert (cell.exact == "none") == relaxed
        assert (preset.exact == "none") == relaxed


def outcome_of(cell: Cell) -> Outcome:
    """Figures that differ from cell to cell, the same for equal cells."""
    generator = torch.Generator().manual_seed(sum(json.dumps(cell.settings(), sort_keys=True).encode()) * 1009 + len(str(cell)))
    tokens_per_forward = 1 + 5 * torch.rand((), generator=generator) + torch.rand(6, generator=generator, dtype=torch.float64)
    return Outcome(torch.full((6, 256), cell.inputs), tokens_per_forward, float(torch.rand((), generator=generator)))


def measures(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    values = torch.arange(6, dtype=torch.float32) / tokens[:, 0]
    return {name: values * number for number, name in enumerate(("background_right", "colour_right", "garment_right", "nll"), start=1)}


@pytest.fixture(scope="module")
def results() -> dict:
    """Results of the whole plan, as they are read from their file."""
    found = {
        "conditions": {"device": "a machine", "torch": "2", "transformers": "5", "commit": "abc"},
        "weights": {"tuned": "t", "base": "b"},
        "code": "c",
        "settings": {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 100, "batch_size": 16, "confidence": 0.95},
        "groups": {
            name: {"images": 6} | quality(places, outcome_of, measures) if name == "quality" else {"images": 6} | compression(places, outcome_of)
            for name, places in PLAN.groups.items()
        },
    }
    found["groups"]["methods"]["best"] = best_windows(PLAN.groups["methods"], outcome_of)
    return json.loads(json.dumps(found))


def test_differences_are_paired_and_hold_at_once(results):
    group = results["groups"]["guidance"]
    assert group["comparisons"] == len(group["rows"]) - len(SCALES)  # mc-sjd is not compared with itself
    factor = NormalDist().inv_cdf(1 - 0.05 / (2 * group["comparisons"]))
    for place, row in zip(PLAN.groups["guidance"], group["rows"], strict=True):
        values, reference = (outcome_of(cell).tokens_per_forward for cell in (place.cell, place.cell.reference))
        assert row["tokens_per_forward"] == pytest.approx(float(values.mean()))
        if place.at["method"] == "mc-sjd":
            assert "to_mc_sjd" not in row
            continue
        delta = values - reference
        assert row["to_mc_sjd"]["delta"] == pytest.approx(float(delta.mean()))
        assert row["to_mc_sjd"]["interval"] == pytest.approx(factor * float(delta.std()) / 6**0.5)
        assert row["to_mc_sjd"]["ratio"] == pytest.approx(float(values.mean() / reference.mean()))

    group = results["groups"]["methods"]
    with_base = [row for row in group["rows"] if "to_base" in row]
    assert len(with_base) == len(group["rows"]) // 2
    tuned, base = (outcome_of(Cell(model, replace(PRESETS["sjd"], window=32))).tokens_per_forward for model in ("tuned", "base"))
    row = next(row for row in with_base if row["at"] == {"model": "tuned", "method": "sjd", "window": 32})
    assert row["to_base"]["delta"] == pytest.approx(float((tuned - base).mean()))


def test_best_windows_are_compared_with_each_other(results):
    best = results["groups"]["methods"]["best"]
    rows = {(row["model"], row["method"]): row for row in best["rows"]}
    assert len(rows) == 2 * len(PRESETS)
    assert best["comparisons"] == 2 * (2 * len(PRESETS) - 2)
    for (model, method), row in rows.items():
        others = [other for other in results["groups"]["methods"]["rows"] if other["at"]["model"] == model and other["at"]["method"] == method]
        assert row["tokens_per_forward"] == max(other["tokens_per_forward"] for other in others)
    found, reference = rows["tuned", "sjd2"], rows["tuned", "sjd"]
    assert found["times_sjd"]["ratio"] == pytest.approx(found["tokens_per_forward"] / reference["tokens_per_forward"])
    assert "times_sjd" not in reference


def test_the_interval_of_a_ratio_holds_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside, trials = 0, 2000
    for _ in range(trials):
        prompt = torch.randn(60, generator=generator, dtype=torch.float64)
        reference, values = (mean + prompt + 0.5 * torch.randn(60, generator=generator, dtype=torch.float64) for mean in (4.0, 6.0))
        found = compare_ratio(values, reference, 1.96)
        inside += abs(found["ratio"] - 1.5) <= found["interval"]
    # 95 % of 2,000 is 1,900; five standard deviations are 49. Paired means of a ratio come out a little below their nominal share.
    assert abs(inside - 0.95 * trials) < 60


def test_quality_is_compared_with_the_untuned_model(results):
    group = results["groups"]["quality"]
    assert group["reference"] == group["rows"][0]["at"]["run"] == "ar, untuned"
    assert group["comparisons"] == 4 * (len(group["rows"]) - 1)
    row = group["rows"][2]
    expected = measures(outcome_of(PLAN.groups["quality"][2].cell).tokens)["nll"] - measures(torch.ones(6, 1))["nll"]
    assert row["quality"]["nll"]["delta"] == pytest.approx(float(expected.mean()), rel=1e-5)


def stored(results: dict, folder: Path) -> Path:
    folder.mkdir()
    (folder / "ablations.json").write_text(json.dumps(results))
    return folder


def test_every_table_shows_the_stored_figures(results, request, tmp_path):
    page = (Path(request.config.rootpath) / "docs" / "sjd2.md").read_text()
    assert set(ABLATION_TABLES) <= set(re.findall(r"<!-- table (\w+) -->", page))
    filled = tables.filled(page, stored(results, tmp_path / "results"))
    assert tables.filled(filled, tmp_path / "results") == filled
    for name in PLAN.groups:
        for row in results["groups"][name]["rows"]:
            if row["method"] == "ar":
                continue
            figure = f"{row['tokens_per_forward']:.2f}" + ("" if name == "quality" else f" ± {row['error']:.2f}")
            assert figure in filled, (name, row["at"])
            if "to_base" in row:
                assert f"{row['to_base']['delta']:+.2f} ± {row['to_base']['interval']:.2f}" in filled
    for row in results["groups"]["methods"]["best"]["rows"]:
        for found in (row[name] for name in ("times_mc-sjd", "times_sjd") if name in row):
            assert f"{found['ratio']:.2f} ± {found['interval']:.2f}" in filled
    for row in results["groups"]["updates"]["rows"]:
        assert f"{row['to_mc_sjd']['delta']:+.2f} ± {row['to_mc_sjd']['interval']:.2f}" in filled
    for row in results["groups"]["quality"]["rows"][1:]:
        assert all(f"{found['delta']:+.3f} ± {found['interval']:.3f}" in filled for found in row["quality"].values())
    assert set(re.findall(r"images/ablations_(\w+)\.png", filled)) == set(PLOTS)


def test_tables_of_what_was_not_run_say_so(results, request, tmp_path):
    page = (Path(request.config.rootpath) / "docs" / "sjd2.md").read_text()
    (tmp_path / "empty").mkdir()
    empty = tables.filled(page, tmp_path / "empty")
    assert re.findall(r"<!-- table \w+ -->\n(?!\*Not run yet\.\*\n<!-- end -->)", empty) == []
    part = results | {"groups": {"guidance": results["groups"]["guidance"]}}
    filled = tables.filled(empty, stored(part, tmp_path / "part"))
    shown = re.findall(r"<!-- table (\w+) -->\n(?!\*Not run yet)", filled)
    assert shown == ["ablations_conditions", "ablations_guidance"]
    assert tables.filled(filled, tmp_path / "empty") == empty


def test_a_table_of_fewer_images_says_so(results):
    groups = results["groups"] | {"guidance": results["groups"]["guidance"] | {"images": 4}}
    fewer = {name: table(results | {"groups": groups}) for name, table in ABLATION_TABLES.items()}
    assert [name for name, text in fewer.items() if text.endswith("\n4 images a cell.")] == ["ablations_guidance"]
    assert fewer["ablations_conditions"].startswith("6 held-out prompts")


def test_groups_measured_before_stay_only_under_the_same_circumstances(tmp_path):
    runs = SimpleNamespace(
        weights={"tuned": "w"},
        code="c",
        sampling={"top_k": 100},
        batch_size=16,
        conditions={"device": "a machine", "torch": "2", "transformers": "5"},
    )
    path, groups = tmp_path / "results.json", {"guidance": {"images": 9, "rows": []}}
    assert ablations.earlier_groups(path, runs) == {}
    ablations.write(path, PLAN, runs, groups)
    assert ablations.earlier_groups(path, runs) == groups
    others = {
        "weights": {"tuned": "v"},
        "code": "d",
        "sampling": {"top_k": 0},
        "batch_size": 8,
        "conditions": runs.conditions | {"device": "another"},
    }
    for name, value in others.items():
        assert ablations.earlier_groups(path, SimpleNamespace(**vars(runs) | {name: value})) == {}, name


def test_bold_is_what_exceeds_mc_sjd_by_more_than_chance():
    def row(clean: int, delta: float) -> dict:
        return {"at": {"clean": clean, "steps": 2}, "tokens_per_forward": 5.0 + delta, "error": 0.1, "to_mc_sjd": {"delta": delta, "interval": 0.5}}

    table = ABLATION_TABLES["ablations_clean_steps"]({"groups": {"clean_steps": {"images": 6, "rows": [row(1, 0.6), row(8, 0.4), row(16, -0.6)]}}})
    assert table.splitlines()[2:] == ["| 1 | **5.60 ± 0.10** |", "| 8 | 5.40 ± 0.10 |", "| 16 | 4.40 ± 0.10 |"]


def test_plots_are_drawn_for_the_groups_that_were_run(results, tmp_path):
    written = save(plots(results), tmp_path / "all")
    assert [path.stem.removeprefix("ablations_") for path in written] == list(PLOTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert plots(results | {"groups": {}}) == []
