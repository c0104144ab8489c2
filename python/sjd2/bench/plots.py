"""Figures of a benchmark as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plotting import figure_file
from .report import labels

__all__ = ["draw_bench"]

_ROW_HEIGHT = 0.34


def _ends(figures: list[dict[str, Any]]) -> list[list[float]]:
    """Of error bars: distances to the interval's ends, 0 where there is no interval."""
    return [[abs((figure["value"] if figure[end] is None else figure[end]) - figure["value"]) for figure in figures] for end in ("low", "high")]


def _compression(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens per forward of every variant with its interval."""
    with figure_file(path, figsize=(7, 1 + _ROW_HEIGHT * len(rows))) as figure:
        axis = figure.subplots()
        for place, row in enumerate(rows):
            mean = row["tokens_per_forward"]
            axis.errorbar(mean["value"], place, xerr=_ends([mean]), fmt="o", capsize=3, color="C0")
        axis.set(yticks=range(len(rows)), yticklabels=labels(rows), xlabel="tokens per forward, mean and 95 % interval")
        axis.set(xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)


def _histograms(rows: list[dict[str, Any]], path: Path) -> None:
    """How many tokens forwards gave, a panel per variant."""
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    with figure_file(path, figsize=(2.6 * columns, 0.4 + 1.7 * lines)) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axis, row, label in zip(panels.flat, rows, labels(rows), strict=False):
            tokens, times = [int(count) for count in row["histogram"]], list(row["histogram"].values())
            axis.bar(tokens, [count / sum(times) for count in times], width=1, color="C0", edgecolor="white", linewidth=0.5)
            axis.set_title(label, fontsize=9)
            axis.tick_params(labelbottom=True)
        for axis in panels.flat[len(rows) :]:
            axis.axis("off")
        figure.supxlabel("tokens of one forward", fontsize=9)
        figure.supylabel("share of forwards", fontsize=9)


def _seconds(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds per picture, in the model's forward and outside it where that is known."""
    with figure_file(path, figsize=(7, 1.2 + _ROW_HEIGHT * len(rows))) as figure:
        axis = figure.subplots()
        places = range(len(rows))
        axis.barh(places, [row["seconds_per_picture"] for row in rows], color="C1", label="the rest")
        axis.barh(places, [row["forward_seconds_per_picture"] or 0 for row in rows], color="C0", label="model's forward")
        axis.set(yticks=places, yticklabels=labels(rows), xlabel="seconds per picture, median")
        axis.invert_yaxis()
        if any(row["forward_seconds_per_picture"] is not None for row in rows):
            axis.legend(frameon=False, fontsize=8)


def _acceptance(rows: list[dict[str, Any]], path: Path) -> bool:
    """Accepted drafts per forward by guidance scale and by temperature; ``False``, and no file, where neither was varied."""
    drafting = [row for row in rows if row["method"] != "ar"]
    varied = [name for name in ("guidance_scale", "temperature") if len({row[name] for row in drafting}) > 1]
    if not varied:
        return False
    with figure_file(path, figsize=(4.6 * len(varied), 3.4)) as figure:
        for axis, name in zip(figure.subplots(1, len(varied), squeeze=False)[0], varied, strict=True):
            lines: dict[str, list[dict[str, Any]]] = {}
            for label, row in zip(labels(drafting, without=name), drafting, strict=True):
                lines.setdefault(label, []).append(row)
            for label, line in lines.items():
                line.sort(key=lambda row: row[name])
                accepted = [row["accepted_per_forward"] for row in line]
                values = [figure["value"] for figure in accepted]
                axis.errorbar([row[name] for row in line], values, yerr=_ends(accepted), marker="o", capsize=3, label=label)
            axis.set(xlabel=name.replace("_", " "), ylabel="accepted drafts per forward", ylim=(0, None))
            axis.legend(frameon=False, fontsize=8)
            axis.grid(alpha=0.3)
    return True


def draw_bench(rows: list[dict[str, Any]], folder: str | Path) -> list[Path]:
    """Draw ``tokens_per_forward.png``, ``histogram.png``, ``seconds.png`` and, where guidance or temperature were varied, ``acceptance.png``.

    Args:
        rows: of ``summarise``.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    drawings = {"tokens_per_forward.png": _compression, "histogram.png": _histograms, "seconds.png": _seconds, "acceptance.png": _acceptance}
    return [Path(folder) / name for name, draw in drawings.items() if draw(rows, Path(folder) / name) is not False]
