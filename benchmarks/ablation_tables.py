"""The tables of ``docs/sjd2.md`` from the stored ablations; a group that was not run has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circumstances import circumstances

Row = dict[str, Any]
Table = Callable[[dict], str]

_NAMES = {
    "model": "weights",
    "clean": "clean slots",
    "length": "length L",
    "normalise": "normalised",
    "per_level": "slots of a level",
    "steps": "levels K",
    "timesteps": "timestep tokens",
    "window": "W",
    "guidance_scale": "guidance",
}
_MEASURES = {
    "background_right": "background right",
    "colour_right": "garment's colour right",
    "garment_right": "garment right",
    "nll": "NLL per token",
}


def _shown(value: object, name: str = "") -> str:
    if name == "method":
        return f"`{value}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _outside(difference: dict[str, float], text: str) -> str:
    """Bold where the interval leaves zero out."""
    return f"**{text}**" if abs(difference["delta"]) > difference["interval"] else text


def _difference(found: dict[str, float]) -> str:
    return _outside(found, f"{found['delta']:+.2f} ± {found['interval']:.2f}")


def _tokens(row: Row) -> str:
    """Bold where ``mc-sjd`` is exceeded."""
    text = f"{row['tokens_per_forward']:.2f} ± {row['error']:.2f}"
    found = row.get("to_mc_sjd")
    return f"**{text}**" if found and found["delta"] > found["interval"] else text


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines)])


def _picture(name: str, alternative: str) -> str:
    return f"\n\n![{alternative}](images/ablations_{name}.png)"


def _rows(results: dict, group: str) -> list[Row]:
    return results["groups"].get(group, {"rows": []})["rows"]


def _grid(rows: list[Row], across: str, text: Callable[[Row], str]) -> str:
    """A column per value of ``across``, a line per combination of everything else that varies."""
    columns = list(dict.fromkeys(row["at"][across] for row in rows))
    down = [name for name in rows[0]["at"] if name != across]
    lines: dict[tuple, dict] = {}
    for row in rows:
        lines.setdefault(tuple(row["at"][name] for name in down), {})[row["at"][across]] = text(row)
    head = [_NAMES.get(name, name) for name in down]
    label = "" if all(isinstance(column, str) for column in columns) else f"{_NAMES.get(across, across)} = "
    body = []
    for key, cells in lines.items():
        named = [_shown(value, name) for name, value in zip(down, key, strict=True)]
        body.append(named + [cells.get(column, "") for column in columns])
    return _table(head + [label + _shown(column) for column in columns], body)


def _grid_of(group: str, across: str, text: Callable[[Row], str] = _tokens, picture: str = "") -> Table:
    """A table function of a whole group."""

    def table(results: dict) -> str:
        rows = _rows(results, group)
        return (_grid(rows, across, text) + (_picture(group, picture) if picture else "")) if rows else ""

    return table


def methods_table(results: dict) -> str:
    """Tokens per forward of every method at every window, on the tuned and on the untuned weights."""
    rows = [row for row in _rows(results, "methods") if row["at"]["method"] != "ar"]
    return _grid(rows, "window", _tokens) + _picture("methods", "Tokens per forward against the window, by method") if rows else ""


def best_table(results: dict) -> str:
    """Every method at the window where it commits most, against ``mc-sjd`` and ``sjd`` at theirs, with its price."""

    def ratio(row: Row, to: str) -> str:
        found = row.get(f"times_{to}")
        return f"{found['ratio']:.2f} ± {found['interval']:.2f}" if found else ""

    lines = []
    for row in results["groups"].get("methods", {"best": {"rows": []}})["best"]["rows"]:
        exact = "no" if row["exact"] == "none" else row["exact"]
        tokens = f"{row['tokens_per_forward']:.2f} ± {row['error']:.2f}"
        price = [str(row["inputs"]), f"{row['seconds']:.2f}"]
        lines.append([row["model"], f"`{row['method']}`", exact, str(row["window"]), tokens, ratio(row, "mc-sjd"), ratio(row, "sjd"), *price])
    head = ["weights", "method", "exact", "best W", "tokens per forward", "times `mc-sjd`", "times `sjd`", "inputs", "seconds"]
    return _table(head, lines) if lines else ""


def tuning_table(results: dict) -> str:
    """What tuning adds to every method at every window."""
    rows = [row for row in _rows(results, "methods") if "to_base" in row and row["at"]["method"] != "ar"]
    rows = [row | {"at": {"method": row["at"]["method"], "window": row["at"]["window"]}} for row in rows]
    return _grid(rows, "window", lambda row: _difference(row["to_base"])) if rows else ""


def updates_table(results: dict) -> str:
    """Update rules, with their price."""
    rows = _rows(results, "updates")
    lines = []
    for row in rows:
        tokens = f"{row['tokens_per_forward']:.2f} ± {row['error']:.2f}"
        found = _difference(row["to_mc_sjd"])
        lines.append([str(row["at"]["clean"]), row["at"]["update"], tokens, found, str(row["inputs"]), f"{row['seconds']:.2f}"])
    return _table(["clean slots", "update", "tokens per forward", "difference to `mc-sjd`", "inputs", "seconds"], lines) if rows else ""


def quality_table(results: dict) -> str:
    """Measures of the pictures: of the reference, and how far the others are from it."""
    group = results["groups"].get("quality")
    if group is None:
        return ""

    def cell(row: Row, measure: str) -> str:
        found = row["quality"][measure]
        if row["at"]["run"] == group["reference"]:
            return f"{found['mean']:.3f}"
        return _outside(found, f"{found['delta']:+.3f} ± {found['interval']:.3f}")

    lines = [
        [f"`{row['at']['run']}`", "no" if row["exact"] == "none" else row["exact"], f"{row['tokens_per_forward']:.2f}"]
        + [cell(row, measure) for measure in _MEASURES]
        for row in group["rows"]
    ]
    return _table(["", "exact", "tokens per forward", *_MEASURES.values()], lines)


def conditions_line(results: dict) -> str:
    """What all of it was measured under."""
    settings = results["settings"]
    images = max(group["images"] for group in results["groups"].values())
    weights = ", ".join(f"{name} {digest}" for name, digest in results["weights"].items())
    return (
        f"{images} held-out prompts, one image each (fewer where a table says so), the same prompts and seeds in every cell of a table; guidance "
        f"{settings['guidance_scale']:g} unless said otherwise, temperature {settings['temperature']:g}, top-k {settings['top_k']}. "
        f"Behind ±: the {settings['confidence']:.0%} confidence interval of a mean, or the interval of a difference, paired by image, that holds "
        "all differences of its table at once. "
        f"Seconds: per image, in batches of {settings['batch_size']}. Weights: {weights}. "
        f"{circumstances(results['conditions'])}"
    )


def _counted(group: str, table: Table) -> Table:
    """The table, with its number of images where others have more."""

    def counted(results: dict) -> str:
        groups, text = results["groups"], table(results)
        if text and groups[group]["images"] < max(other["images"] for other in groups.values()):
            text += f"\n\n{groups[group]['images']} images a cell."
        return text

    return counted


_TABLES: dict[str, tuple[str, Table]] = {
    "best": ("methods", best_table),
    "methods": ("methods", methods_table),
    "tuning": ("methods", tuning_table),
    "quality": ("quality", quality_table),
    "updates": ("updates", updates_table),
    "switches": ("switches", _grid_of("switches", "verification")),
    "guidance": ("guidance", _grid_of("guidance", "guidance_scale", picture="Tokens per forward against the guidance scale")),
    "schedule": ("schedule", _grid_of("schedule", "schedule")),
    "clean_per_level": ("clean_per_level", _grid_of("clean_per_level", "per_level")),
    "clean_steps": ("clean_steps", _grid_of("clean_steps", "steps")),
    "steps_window": ("steps_window", _grid_of("steps_window", "window", picture="Tokens per forward by number of levels and window")),
}
ABLATION_TABLES: dict[str, Table] = {f"ablations_{name}": _counted(group, table) for name, (group, table) in _TABLES.items()}
ABLATION_TABLES["ablations_conditions"] = conditions_line
