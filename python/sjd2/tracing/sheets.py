"""Sheets: the same prompt and seed by several methods, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..plotting import figure_file
from .trace import Trace

__all__ = ["draw_sheet"]


def draw_sheet(traces: Sequence[Trace], path: str | Path) -> None:
    """Draw pictures as a table: a row for every prompt and seed, a column for every method, with what each took.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: a trace without a picture, or two for the same place of the table.
    """
    places: dict[tuple[tuple[str, int], str], Trace] = {}
    for trace in traces:
        prompt, seed, method = (trace.about[name] for name in ("prompt", "seed", "method"))
        key = ((prompt, seed), f"{method}, W = {trace.window}")
        if trace.image is None:
            raise ValueError(f"traces: expected pictures in all, got none in that of {prompt!r} by {method}: its model has no decoder of pixels here")
        if key in places:
            raise ValueError(f"traces: expected one of each prompt, seed and method, got two of {prompt!r}, seed {seed}, {key[1]}")
        places[key] = trace
    rows, columns = list(dict.fromkeys(row for row, _ in places)), list(dict.fromkeys(column for _, column in places))
    with figure_file(path, figsize=(2.5 * len(columns) + 1.4, 2.8 * len(rows) + 0.3)) as figure:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (prompt, seed) in zip(axes, rows, strict=True):
            for axis, column in zip(line, columns, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                found = places.get(((prompt, seed), column))
                if found is not None:
                    axis.imshow(found.image, interpolation="nearest")
                    axis.set_title(f"{column}\n{found.forwards} forwards, {len(found.tokens) / found.forwards:.2f} tokens each", fontsize=9)
            line[0].set_ylabel("\n".join([*textwrap.wrap(prompt, 18), f"seed {seed}"]), rotation=0, ha="right", va="center", fontsize=9)
