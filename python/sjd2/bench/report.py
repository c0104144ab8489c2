"""Figures as a table for the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ..files import write_atomically

__all__ = ["aligned", "labels", "shown_interval", "table", "write_csv", "write_json"]

#: Settings that tell rows of the same method apart, and how they are written behind its name.
_TELLING = {"window": "W = {}", "guidance_scale": "guidance {:g}", "temperature": "T = {:g}"}


def labels(rows: list[dict[str, Any]], without: str | None = None) -> list[str]:
    """A name for every row: its method, and the settings (but ``without`` one) that not all rows of that method share."""
    found = []
    for row in rows:
        values = {name: {other[name] for other in rows if other["method"] == row["method"]} for name in _TELLING}
        telling = [shape.format(row[name]) for name, shape in _TELLING.items() if len(values[name]) > 1 and name != without]
        found.append(", ".join([row["method"], *telling]))
    return found


def shown_interval(figure: dict[str, Any] | None) -> str:
    """``value (low–high)`` of a figure, the value alone where there is no interval, nothing for ``None``."""
    if figure is None:
        return ""
    interval = "" if figure["low"] is None else f" ({figure['low']:.2f}–{figure['high']:.2f})"
    return f"{figure['value']:.2f}{interval}"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f} MiB"


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """Columns for a terminal, the first to the left and the others to the right; one that no line has anything in is left out."""
    kept = [column for column in range(len(head)) if any(line[column] for line in lines)]
    widths = {column: max(len(line[column]) for line in [head, *lines]) for column in kept}
    padded = [[f"{line[column]:{'>' if column else '<'}{widths[column]}}" for column in kept] for line in [head, *lines]]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in aligned columns, for people; a column that no row has anything in is left out."""
    measures = list(dict.fromkeys(name for row in rows for name in row.get("quality", {})))
    head = ["method", "pictures", "forwards", "tokens per forward", "s per picture", "in forward", "rest", "× ar", "peak memory", *measures]
    lines = [
        [
            label,
            str(row["pictures"]),
            f"{row['forwards']['value']:.1f}",
            shown_interval(row["tokens_per_forward"]),
            f"{row['seconds_per_picture']:.3f}",
            *("" if row[name] is None else f"{row[name]:.3f}" for name in ("forward_seconds_per_picture", "other_seconds_per_picture")),
            shown_interval(row.get("speed_up")),
            _bytes(row["peak_memory"]),
            *(f"{row['quality'][name]['value']:.3f}" if name in row.get("quality", {}) else "" for name in measures),
        ]
        for label, row in zip(labels(rows), rows, strict=True)
    ]
    return aligned(head, lines)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content``, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(Path(path), lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as ``outer_inner``; a histogram stays one column of JSON."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "histogram":
            flat[name] = json.dumps(value)
        elif isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}_")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """A line per row, nested figures as columns ``outer_inner``; empty where there is none."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))

    def write(scratch: Path) -> None:
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(flat)

    write_atomically(Path(path), write)
