"""Tables of what ``gpu_suite.py`` measured; ``tables.py`` writes them into the docs from ``benchmarks/results/gpu``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circumstances import circumstances
from targets import load, on_gpu, targets

NOT_MEASURED = "*Not measured on a GPU.*"


def targets_table(folder: Path) -> str:
    """Every target with its figure; those of the GPU are not measured where the folder has no results."""
    lines = ["| of | target | measured | |", "|---|---|---|---|"]
    lines += [f"| {target.of} | {target.text} | {target.figure} | {target.verdict} |" for target in targets(load(folder))]
    return "\n".join(lines)


def _results(folder: Path, name: str) -> dict[str, Any] | None:
    """Stored results, if they are a GPU's."""
    path = folder / f"{name}.json"
    results = json.loads(path.read_text()) if path.exists() else None
    return results if on_gpu(results) else None


def _gibibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.1f} GiB"


def iterations_table(folder: Path) -> str:
    """An iteration of every full-size model, window and batch."""
    results = _results(folder, "full_size")
    if results is None:
        return NOT_MEASURED
    lines = [
        "| model | B | W | ms | of the weights' bound | forward | verify | cache | rest | eager | published loop | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        if "batch" not in row:
            continue
        if "milliseconds" not in row:
            lines.append(f"| {row['model']} | {row['batch']} | {row['window']} | not run: {row['not run']} |" + " |" * 8)
            continue
        bound = 1e3 * row["weight_bytes"] / results["copy_bytes_per_second"]
        split = [f"{row['split'][name]:.3f}" if row["split"] else "" for name in ("forward", "verify", "cache", "rest")]
        peer = row.get("published_milliseconds")
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['window']} | {row['milliseconds']:.2f} | {row['milliseconds'] / bound:.2f}× | "
            f"{' | '.join(split)} | {row['eager_milliseconds']:.1f} | {'' if peer is None else f'{peer:.1f}'} | {_gibibytes(row['peak_bytes'])} |"
        )
    images = [row for row in results["rows"] if "seconds" in row]
    lines += ["", *(_image(row) for row in images)]
    return "\n".join([*lines, "", f"Milliseconds, medians. {circumstances(results['conditions'])}"])


def _image(row: dict[str, Any]) -> str:
    method = "`ar`" if row["end_to_end"] == 1 else f"`sjd2`, W = {row['window']}, {row['end_to_end']} tokens of every forward"
    return f"- {row['model']}, {method}: {row['seconds']:.2f} s for {row['tokens']:,} tokens in {row['forwards']:,} forwards."


def ops_table(folder: Path) -> str:
    """The fused ops beside their floor and the definition, the cache flushed."""
    results = _results(folder, "fused_ops")
    if results is None:
        return NOT_MEASURED
    times = {(row["op"], row["batch"], row["vocab"], row["implementation"], row["cache"]): row for row in results["rows"] if "p50" in row}
    lines = ["| op | B | V, or D | µs, hot | µs, flushed | of the floor's speed | eager definition |", "|---|---|---|---|---|---|---|"]
    for (op, batch, vocab, name, cache), row in times.items():
        if name != "sjd2 triton" or cache != "flushed":
            continue
        hot, eager = times.get((op, batch, vocab, name, "hot")), times.get((op, batch, vocab, "definition (eager PyTorch)", "flushed"))
        beside = "" if eager is None else f"{eager['p50'] / row['p50']:.0f}×"
        shown = "" if hot is None else f"{hot['p50']:.1f}"
        lines.append(f"| {op} | {batch} | {vocab:,} | {shown} | {row['p50']:.1f} | {row['percent_of_floor']:.0f} % | {beside} |")
    return "\n".join([*lines, "", circumstances(results["conditions"])])


#: Name of a table, and what makes it of the folder of results.
GPU_TABLES: dict[str, Callable[[Path], str]] = {"targets": targets_table, "iterations": iterations_table, "fused_ops": ops_table}
