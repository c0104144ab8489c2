"""From cells to figures: a row per variant, and one line of what it was measured on."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .intervals import bootstrap_interval
from .settings import BenchSettings, Variant

__all__ = ["summarise", "with_interval"]


def _mean(draws: torch.Tensor) -> torch.Tensor:
    return draws.mean(1)


def with_interval(values: Sequence[float], statistic: Callable[[torch.Tensor], torch.Tensor] = _mean) -> dict[str, float | None]:
    """A statistic of independent values with its 95 % bootstrap interval, which is ``None`` of a single value."""
    tensor = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(tensor, statistic) or (None, None)
    return {"value": float(statistic(tensor[None])), "low": low, "high": high}


def _beside_ar(mine: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Gain in time over ``ar``, paired by batch, and the share of pictures that are those of ``ar`` token by token."""
    seconds = {cell["first"]: cell["seconds"] for cell in plain}
    gains = [seconds[cell["first"]] / cell["seconds"] for cell in mine if cell["first"] in seconds]
    tokens = {(one["prompt"], one["seed"]): one["tokens"] for cell in plain for one in cell["pictures"]}
    same = [float(tokens[key] == one["tokens"]) for cell in mine for one in cell["pictures"] if (key := (one["prompt"], one["seed"])) in tokens]
    if not gains:
        return {}
    speed_up = with_interval(gains, lambda draws: draws.quantile(0.5, dim=1))
    return {"speed_up": speed_up | {"least": min(gains), "most": max(gains)}, "same_tokens_as_ar": statistics.fmean(same)}


def _row(variant: Variant, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one variant by itself."""
    pictures = [picture for cell in cells for picture in cell["pictures"]]
    histogram: Counter[int] = Counter()
    for picture in pictures:
        histogram.update({int(tokens): times for tokens, times in picture["histogram"].items()})
    peaks = [cell["peak_memory"] for cell in cells if cell["peak_memory"] is not None]
    seconds = [cell["seconds"] / len(cell["pictures"]) for cell in cells]
    # CUDA graphs hold whole iterations: there is no time of the forward alone.
    forward = [None if cell["forward_seconds"] is None else cell["forward_seconds"] / len(cell["pictures"]) for cell in cells]
    tried = {"windows": sorted({picture["window"] for picture in pictures})} if variant.options["window"] == "auto" else {}
    split = [(whole, inside) for whole, inside in zip(seconds, forward, strict=True) if inside is not None]
    return {
        **variant.to_dict(),
        "exact": variant.preset.exact,
        "pictures": len(pictures),
        **tried,
        "tokens_per_forward": with_interval([len(picture["tokens"]) / picture["forwards"] for picture in pictures]),
        "forwards": with_interval([picture["forwards"] for picture in pictures]),
        "accepted_per_forward": with_interval([picture["accepted_per_forward"] for picture in pictures]),
        "histogram": {str(tokens): histogram[tokens] for tokens in sorted(histogram)},
        "seconds_per_picture": statistics.median(seconds),
        "forward_seconds_per_picture": statistics.median(inside for _, inside in split) if split else None,
        "other_seconds_per_picture": statistics.median(whole - inside for whole, inside in split) if split else None,
        "peak_memory": max(peaks) if peaks else None,
    }


def summarise(
    settings: BenchSettings,
    cells: list[dict[str, Any]],
    measure: Callable[[list[str], list[list[int]]], dict[str, list[float]]] | None = None,
) -> list[dict[str, Any]]:
    """A row of figures for every variant that at least one cell is finished of; also of an interrupted run.

    Figures with an interval are ``{"value", "low", "high"}``: a mean over pictures (of the speed-up a median over batches, paired with ``ar`` under
    the same sampling settings) and its 95 % bootstrap interval.

    Args:
        measure: of pictures, given their prompts and tokens: values by the measure's name, one per picture that it says something of.
    """
    rows = []
    for index, variant in enumerate(settings.variants):
        mine = [cell for cell in cells if cell["variant"] == index]
        if not mine:
            continue
        row = _row(variant, mine)
        plain = next((i for i, other in enumerate(settings.variants) if other.method == "ar" and other.sampling == variant.sampling), None)
        if plain is not None and plain != index:
            row |= _beside_ar(mine, [cell for cell in cells if cell["variant"] == plain])
        if measure is not None:
            pictures = [picture for cell in mine for picture in cell["pictures"]]
            found = measure([picture["prompt"] for picture in pictures], [picture["tokens"] for picture in pictures])
            row["quality"] = {name: with_interval(values) for name, values in found.items() if values}
        rows.append(row)
    return rows
