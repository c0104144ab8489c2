"""Draw the plots of ``docs/sjd2.md`` from the stored ablations: ``python benchmarks/ablation_plots.py``. A group that was not run has none."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]

#: Okabe and Ito's colours, which colour-blind eyes tell apart; lines have markers of their own as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
#: A method has one colour and one marker everywhere.
NUMBER_OF = {"jacobi": 0, "sjd": 1, "mc-sjd": 2, "gs-sjd": 3, "sjd++": 4, "sjd2": 6}
TOKENS = "tokens per forward"


def style(number: int) -> dict[str, Any]:
    """Of a line with intervals."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "capsize": 2, "linewidth": 1.5, "markersize": 5}


def _line(axis: Any, rows: Iterable[Row], x: Callable[[Row], float], label: str, number: int) -> None:
    """Means with their confidence intervals."""
    rows = sorted(rows, key=x)
    axis.errorbar([x(row) for row in rows], [row["tokens_per_forward"] for row in rows], [row["error"] for row in rows], label=label, **style(number))


def finish(axes: Iterable[Any]) -> None:
    """A light grid behind the lines, and no frame around them."""
    for axis in axes:
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)


def methods(rows: list[Row]) -> Any:
    """Tokens per forward against W, a panel per model."""
    models = list(dict.fromkeys(row["at"]["model"] for row in rows))
    names = [name for name in dict.fromkeys(row["at"]["method"] for row in rows) if name != "ar"]
    figure, axes = plt.subplots(1, len(models), figsize=(4.4 * len(models) + 1.4, 4), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for name in names:
            mine = [row for row in rows if row["at"]["model"] == model and row["at"]["method"] == name]
            _line(axis, mine, lambda row: row["window"], name + (" (not exact)" if mine[0]["exact"] == "none" else ""), NUMBER_OF.get(name, 5))
        axis.set(title=f"{'un' if model == 'base' else ''}tuned weights", xlabel="window W", xticks=sorted({row["window"] for row in rows} - {1}))
    axes[0, 0].set_ylabel(TOKENS)
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    finish(axes[0])
    return figure


def steps_window(rows: list[Row]) -> Any:
    """K × W as a heat map."""
    steps, windows = (sorted({row["at"][name] for row in rows}) for name in ("steps", "window"))
    values = {(row["at"]["steps"], row["at"]["window"]): row["tokens_per_forward"] for row in rows}
    table = [[values[step, window] for window in windows] for step in steps]
    figure, axis = plt.subplots(figsize=(5.2, 4.2))
    image = axis.imshow(table, cmap="cividis", aspect="auto", origin="lower")
    middle = (min(values.values()) + max(values.values())) / 2
    for i, line in enumerate(table):
        for j, value in enumerate(line):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black")
    axis.set(xticks=range(len(windows)), xticklabels=windows, yticks=range(len(steps)), yticklabels=steps, xlabel="window W", ylabel="levels K")
    figure.colorbar(image, label=TOKENS)
    return figure


def guidance(rows: list[Row]) -> Any:
    """Against the guidance scale, by method."""
    figure, axis = plt.subplots(figsize=(5.2, 4))
    for name in dict.fromkeys(row["at"]["method"] for row in rows):
        _line(axis, [row for row in rows if row["at"]["method"] == name], lambda row: row["guidance_scale"], name, NUMBER_OF.get(name, 5))
    axis.set(xlabel="guidance scale", ylabel=TOKENS, xticks=sorted({row["guidance_scale"] for row in rows}))
    axis.legend(frameon=False)
    finish([axis])
    return figure


PLOTS: dict[str, Callable[[list[Row]], Any]] = {"methods": methods, "steps_window": steps_window, "guidance": guidance}


def source(data: Any) -> str:
    """Tells the figures that a plot was drawn from apart from others; every PNG holds it as ``Source``."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def save(plots: Iterable[tuple[str, Callable[[Any], Any], Any]], folder: Path) -> list[Path]:
    """Write a PNG for every name, plot, and data to plot."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot, data in plots:
        figure = plot(data)
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=110, bbox_inches="tight", metadata={"Source": source(data)})
        plt.close(figure)
    return written


def plots(results: dict) -> list[tuple[str, Callable[[Any], Any], Any]]:
    """Name, plot, and data to plot, of every group that is there."""
    groups = results["groups"]
    return [(f"ablations_{name}", plot, groups[name]["rows"]) for name, plot in PLOTS.items() if name in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=ROOT / "benchmarks" / "results" / "ablations.json", help="default: the stored ones")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where plots are written (default: docs/images)")
    options = parser.parse_args()
    for path in save(plots(json.loads(options.results.read_text())), options.images):
        print(path)


if __name__ == "__main__":
    main()
