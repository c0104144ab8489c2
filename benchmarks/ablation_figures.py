"""Figures of the ablations from what their cells gave: means, intervals, differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ablation_cells import Cell, Place
from ablation_runs import Outcome
from sjd2.bench.intervals import CONFIDENCE, compare, compare_ratio, interval_factor, mean_and_error

Load = Callable[[Cell], Outcome]
Measures = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def _row(place: Place, outcome: Outcome) -> dict[str, Any]:
    cell, denoising = place.cell, place.cell.preset.denoising
    mean, error = mean_and_error(outcome.tokens_per_forward.tolist())
    row: dict[str, Any] = {
        "at": place.at,
        "model": cell.model,
        "method": cell.preset.name,
        "rule": cell.preset.rule.value,
        "exact": cell.exact,
        "window": cell.preset.window,
        "guidance_scale": cell.guidance_scale,
        "inputs": cell.inputs,
        "tokens_per_forward": mean,
        "error": error,
        "seconds": outcome.seconds,
    }
    if denoising is not None:
        names = ("clean", "per_level", "normalise", "timesteps", "nearest")
        row["denoising"] = {"steps": denoising.levels.steps, **{name: getattr(denoising, name) for name in names}}
    return row


def _difference(values: torch.Tensor, reference: torch.Tensor, factor: float) -> dict[str, float]:
    """Paired by image; with the ratio of the means."""
    found = compare(values, reference, factor)
    return {"delta": found["delta"], "interval": found["interval"], "ratio": float(values.mean() / reference.mean())}


def _on_base(place: Place) -> Cell:
    return Cell("base", place.cell.preset, place.cell.guidance_scale)


def compression(places: list[Place], load: Load) -> dict[str, Any]:
    """Tokens per forward of a group, against ``mc-sjd`` and, where the group has the same cell on the untuned model, against that.

    The intervals of a group's differences hold all of them at once.
    """
    cells = {place.cell for place in places}
    compared = sum((place.cell != place.cell.reference) + (place.cell.model == "tuned" and _on_base(place) in cells) for place in places)
    factor = interval_factor(CONFIDENCE, max(compared, 1))
    rows = []
    for place in places:
        outcome = load(place.cell)
        row = _row(place, outcome)
        if place.cell != place.cell.reference:
            row["to_mc_sjd"] = _difference(outcome.tokens_per_forward, load(place.cell.reference).tokens_per_forward, factor)
        if place.cell.model == "tuned" and _on_base(place) in cells:
            row["to_base"] = _difference(outcome.tokens_per_forward, load(_on_base(place)).tokens_per_forward, factor)
        rows.append(row)
    return {"comparisons": compared, "rows": rows}


def best_windows(places: list[Place], load: Load) -> dict[str, Any]:
    """Every method at the window where it commits most, with its ratio to ``mc-sjd`` and to ``sjd`` at theirs.

    The windows are chosen by the images that are then compared, which favours every method a little, and those with more windows to choose from more.
    """
    best: dict[tuple[str, str], Place] = {}
    for place in places:
        key = place.at["model"], place.at["method"]
        if key not in best or load(place.cell).tokens_per_forward.mean() > load(best[key].cell).tokens_per_forward.mean():
            best[key] = place
    pairs = [(key, to) for key in best for to in ("mc-sjd", "sjd") if key[1] != to]
    factor = interval_factor(CONFIDENCE, len(pairs))
    rows = {key: _row(place, load(place.cell)) for key, place in best.items()}
    for key, to in pairs:
        values, reference = (load(best[which].cell).tokens_per_forward for which in (key, (key[0], to)))
        rows[key][f"times_{to}"] = compare_ratio(values, reference, factor)
    return {"comparisons": len(pairs), "rows": list(rows.values())}


def quality(places: list[Place], load: Load, measures: Measures) -> dict[str, Any]:
    """Measures of the pictures of a group, each against the group's first cell."""
    measured = [measures(load(place.cell).tokens) for place in places]
    compared = (len(places) - 1) * len(measured[0])
    factor = interval_factor(CONFIDENCE, max(compared, 1))
    rows = []
    for place, found in zip(places, measured, strict=True):
        row = _row(place, load(place.cell))
        row["quality"] = {name: compare(values, measured[0][name], factor) for name, values in found.items()}
        rows.append(row)
    return {"comparisons": compared, "reference": places[0].at["run"], "rows": rows}
