"""Write the tables of README and docs from stored results: ``python benchmarks/tables.py``; with ``--check``, say whether they are current.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from circumstances import circumstances
from gpu_tables import GPU_TABLES

from ablation_tables import ABLATION_TABLES
from sjd2 import PRESETS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _best(rows: list[dict], method: str, figure: str) -> dict:
    return max((row for row in rows if row["method"] == method), key=lambda row: row[figure])


def compression_table(results: dict) -> str:
    """Tokens per forward at every window, and the wall-clock gain at the window where it is largest."""
    rows = results["compression"]
    windows = sorted({row["window"] for row in rows if row["method"] != "ar"})
    lines = ["| method |" + "".join(f" W = {window} |" for window in windows) + " faster than `ar` |", "|---|" + "---|" * (len(windows) + 1)]
    for method in dict.fromkeys(row["method"] for row in rows):
        if method == "ar":
            continue
        cells = {row["window"]: f"{row['tokens_per_forward']:.2f} ± {row['error']:.2f}" for row in rows if row["method"] == method}
        clock = _best(results["wall_clock"], method, "speed_up")
        lines.append(f"| `{method}` | " + " | ".join(cells[window] for window in windows) + f" | {clock['speed_up']:.2f}× at W = {clock['window']} |")
    return "\n".join(lines)


def headline_table(results: dict) -> str:
    """Every exact method at the window where it takes the fewest forwards, and at the one where it takes the least time."""
    lines = ["| exact method | same as `ar` | tokens per forward | faster than `ar` |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in results["compression"]):
        exact = PRESETS[method].exact
        if exact == "none":
            continue
        few, fast = _best(results["compression"], method, "tokens_per_forward"), _best(results["wall_clock"], method, "speed_up")
        gains = f"{few['tokens_per_forward']:.2f} ± {few['error']:.2f} at W = {few['window']} | {fast['speed_up']:.2f}× at W = {fast['window']}"
        same = {"tokens": "tokens", "law": "distribution"}[exact]
        lines.append(f"| `{method}` | {same} | {'1 | 1' if method == 'ar' else gains} |")
    return "\n".join(lines)


def headline_conditions(results: dict) -> str:
    """What the headline was measured under."""
    return (
        f"The embedded model (weights {results['weights']}), {results['prompts']} held-out prompts, guidance {results['guidance_scale']:g}, 95 % "
        f"confidence intervals; W: drafts per forward. Time: median over {results['timed']} images, one at a time. "
        f"{circumstances(results['conditions'])} All windows and methods: [Performance](docs/performance.md)."
    )


def conditions_line(results: dict) -> str:
    """What the figures were measured under."""
    return (
        "Tokens per forward (`ar`: 1), then the gain in time at the best window. "
        f"Held-out prompts: {results['prompts']}, guidance {results['guidance_scale']:g}, 95 % confidence intervals; "
        "how likely held-out pictures are to the model is on its card. "
        f"Time: one image at a time, median over {results['timed']} prompts paired with `ar` on the same engine in the same process. "
        f"{circumstances(results['conditions'])}"
    )


_MEASURES = {
    "background_right": "background right",
    "colour_right": "garment's colour right",
    "garment_right": "garment right",
    "nll": "NLL per token",
    "fd_effnetlite0": "FD-EffNetLite0",
}


def _compared_table(rows: list[dict], reference: str) -> str:
    """Every measure of every run: its difference to the reference, and the interval or bound that chance stays in."""
    cells = {(row["run"], row["measure"]): row for row in rows}
    runs, measures = list(dict.fromkeys(run for run, _ in cells)), [name for name in _MEASURES if any(measure == name for _, measure in cells)]

    def cell(run: str, measure: str) -> str:
        row = cells.get((run, measure))
        if row is None:
            return ""
        if "distance" in row:
            text = f"{row['distance']:.2f} (≤ {row['bound']:.2f})"
        elif run == reference:
            return f"{row['mean']:.3f}"
        else:
            text = f"{row['delta']:+.3f} ± {row['interval']:.3f}"
        return text if row["inside"] else f"**{text}**"

    lines = ["| | " + " | ".join(_MEASURES[name] for name in measures) + " |", "|---|" + "---|" * len(measures)]
    lines += [f"| `{run}` | " + " | ".join(cell(run, name) for name in measures) + " |" for run in runs]
    return "\n".join(lines)


def pictures_table(results: dict) -> str:
    """Every run against ``ar``."""
    return _compared_table(results["rows"], "ar")


def untuned_pictures_table(results: dict) -> str:
    """Lossless methods on the tuned weights against ``ar`` on the untuned ones; nothing if those were not run."""
    found = results.get("untuned")
    if found is None:
        return ""
    return (
        _compared_table(found["rows"], found["reference"])
        + f"\n\nTuned weights {found['weights']['tuned']}, untuned {found['weights']['untuned']}; NLL is that under the untuned model. "
        f"Intervals hold all {found['comparisons']} comparisons at once with {results['confidence']:.0%} confidence."
    )


def pictures_conditions(results: dict) -> str:
    """What the pictures were drawn and judged under."""
    settings = results["settings"]
    return (
        f"{results['prompts']} held-out prompts, guidance {settings['guidance_scale']:g}, temperature {settings['temperature']:g}, top-k "
        f"{settings['top_k']}; each run has seeds of its own. "
        f"Intervals hold all {results['comparisons']} comparisons of lossless methods at once with {results['confidence']:.0%} confidence. "
        f"{circumstances(results['conditions'])}"
    )


def advance_conditions(results: dict) -> str:
    """What the curves of single pictures were drawn from."""
    settings = results["settings"]
    return (
        f"{results['prompts']} held-out prompts, a line each, at W = {settings['window']} and guidance {settings['guidance_scale']:g}, "
        f"the same seeds for every method; weights {results['weights']}. "
        f"{circumstances(results['conditions'], machine=False)}"
    )


def kv_cache_table(results: dict) -> str:
    """Every workload of the cache: its time, and its speed beside a plain copy of as many bytes."""
    lines = ["| | milliseconds | moved | speed of a plain copy |", "|---|---|---|---|"]
    for row in results["workloads"]:
        moved = f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else "nothing"
        share = f"{row['percent_of_plain_copy']:.0f} %" if row["bytes"] else ""
        lines.append(f"| {row['name']} | {row['p50_us'] / 1e3:,.2f} | {moved} | {share} |")
    return "\n".join(lines)


def kv_cache_conditions(results: dict) -> str:
    """What the cache's figures were measured under."""
    shapes = results["shapes"]
    return (
        f"All layers of one iteration, medians: {shapes['layers']} layers, {shapes['rows']} rows, {shapes['heads']} heads of {shapes['width']}, "
        f"{shapes['dtype']}, window {shapes['window']} behind {shapes['committed']:,} columns. An iteration is "
        f"{results['times_cheaper_than_dynamic_cache']:.0f} times cheaper than with `DynamicCache`. "
        f"{circumstances(results['conditions'])}"
    )


def _size(count: float) -> str:
    """Bytes in the unit that they have one to four digits in."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:,.0f} {unit}"
    return f"{count / 1024:,.2f} GiB"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:,.0f} M"


def model_sizes_table(results: dict) -> str:
    """Layout, parameters and cache of every family."""
    lines = [
        "| model | image | tokens | AR steps | V | parameters (decoding) | cache per token | one image | guided |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["models"]:
        lines.append(
            f"| {row['name']} | {row['pixels']} | {row['grid']} | {row['steps']:,} | {row['vocab_size']:,} | "
            f"{_parameters(row['parameters'])} ({_parameters(row['decoding_parameters'])}) | {_size(row['cache_bytes_per_token'])} | "
            f"{_size(row['cache_bytes'])} | {_size(row['guided_cache_bytes'])} |"
        )
    return "\n".join(lines)


#: What PyTorch, its context and fragments of memory leave free on a GPU of 80 GB, in bytes.
ROOM = 0.9 * 80e9


def batch_sizing_table(results: dict) -> str:
    """Pictures of every family that fit into the memory of a GPU of 80 GB at a time."""
    lines = ["| model | weights | cache, one picture | logits, one picture | pictures together |", "|---|---|---|---|---|"]
    for row in results["models"]:
        weights, logits = 2 * row["decoding_parameters"], 2 * 2 * 2 * results["window"] * row["vocab_size"]
        fit = int((ROOM - weights) // (row["guided_cache_bytes"] + logits))
        lines.append(f"| {row['name']} | {_size(weights)} | {_size(row['guided_cache_bytes'])} | {_size(logits)} | {fit:,} |")
    return "\n".join(lines)


def batch_overhead_table(results: dict) -> str:
    """Two processes by hand and two actors of Ray."""
    lines = ["| two of | pictures | seconds per picture, median | with the start of everything |", "|---|---|---|---|"]
    for name, runs in results["runs"].items():
        steady = statistics.median(run["seconds_per_picture"] for run in runs)
        whole = statistics.median(run["seconds"] / run["pictures"] for run in runs)
        lines.append(f"| {'processes started by hand' if name == 'by hand' else 'Ray actors'} | {runs[0]['pictures']} | {steady:.3f} | {whole:.3f} |")
    low, high = min(results["ratios"]), max(results["ratios"])
    pairs = f"{low:.2f} to {high:.2f} in {len(results['ratios'])} pairs of runs"
    between = f"From the first picture to the last Ray takes {results['ratio']:.2f} times as long ({pairs})."
    return "\n".join([*lines, "", f"{between} {circumstances(results['conditions'])}"])


def _fastest(rows: list[dict]) -> dict[str, dict]:
    """Of each method the window that takes least time."""
    fastest: dict[str, dict] = {}
    for row in rows:
        if row["method"] not in fastest or row["seconds"] < fastest[row["method"]]["seconds"]:
            fastest[row["method"]] = row
    return fastest


def batch_rates_table(results: dict) -> str:
    """Pictures in an hour of one core, by every method at its fastest window, one picture at a time."""
    lines = ["| embedded model | W | pictures per core-hour | per GPU-hour |", "|---|---|---|---|"]
    for method, row in _fastest(results["wall_clock"]).items():
        lines.append(f"| `{method}` | {row['window']} | {3600 / row['seconds']:,.0f} | not measured on a GPU |")
    what = f"One picture at a time, guidance {results['guidance_scale']:g}, median over {results['timed']} pictures."
    return "\n".join([*lines, "", f"{what} {circumstances(results['conditions'])}"])


def batch_rates_together_table(results: dict) -> str:
    """Pictures in an hour of one core, of a batch in two processes."""
    seconds = statistics.median(run["seconds_per_picture"] for run in results["runs"]["by hand"])
    rate = f"**{3600 / seconds / 2:,.0f} pictures per core-hour**"
    return f"`sjd2 batch --batch-size {results['batch_size']}`, in two processes on two cores: {rate}. {circumstances(results['conditions'])}"


def overhead_table(results: dict) -> str:
    """What is outside the forward at each method's fastest window, and what that takes of the gain."""
    fastest = _fastest(results["wall_clock"])
    own = fastest["ar"]
    inside = own["seconds"] * (1 - own["share_outside_forward"])
    lines = [
        "| method | W | seconds | outside the forward | faster than `ar` | forwards alone would give | of that |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in fastest.items():
        bound, gain = inside / (row["seconds"] * (1 - row["share_outside_forward"])), own["seconds"] / row["seconds"]
        shares = f"{gain:.2f}× | {bound:.2f}× | {gain / bound:.0%}" if method != "ar" else " |  | "
        lines.append(f"| `{method}` | {row['window']} | {row['seconds']:.2f} | {row['share_outside_forward']:.0%} | {shares} |")
    return "\n".join(lines)


def emulated_ops_table(results: dict) -> str:
    """Instructions and bytes for an id, of every kernel of ``verify`` and of the draws of ``sample``."""
    found = {(row["op"], row["vocab"], row["kernel"]): row for row in results["kernels"]}

    def cell(op: str, vocab: int, *kernels: str) -> str:
        row = next((found[op, vocab, f"{name}_kernel"] for name in kernels if (op, vocab, f"{name}_kernel") in found), None)
        return f"{row['instructions']:.0f}, {row['sectors']:.1f} B" if row else ""

    lines = ["| V | every id: `verify` | candidates | draws, of slots | draws of `sample` |", "|---|---|---|---|---|"]
    for vocab in dict.fromkeys(row["vocab"] for row in results["kernels"]):
        redrawn = found["verify", vocab, "draw_kernel"]["redrawn"]
        draws = f"{cell('verify', vocab, 'draw')}, {redrawn} of {results['window']}"
        first = cell("verify", vocab, "split_sweep", "row_statistics")
        lines.append(f"| {vocab:,} | {first} | {cell('verify', vocab, 'split_merge')} | {draws} | {cell('sample', vocab, 'draw')} |")
    facts = results["conditions"]
    what = f"Instructions of a thread, and bytes of the sectors of 32 that its warps load, for each id of {results['window']} rows"
    code = f"PTX for sm_{results['capability']}, Triton {facts['triton']}, commit {facts['commit']}"
    return "\n".join([*lines, "", f"{what}; top-k {results['top_k']:,}, guidance 3. {code}. Counted, not measured."])


#: Name of a table: the stored results it is made of, and how.
TABLES = {
    "batch_overhead": ("batch_overhead.json", batch_overhead_table),
    "batch_rates": ("embedded_model.json", batch_rates_table),
    "batch_rates_together": ("batch_overhead.json", batch_rates_together_table),
    "batch_sizing": ("model_sizes.json", batch_sizing_table),
    "overhead": ("embedded_model.json", overhead_table),
    "advance_conditions": ("advance.json", advance_conditions),
    "compression": ("embedded_model.json", compression_table),
    "conditions": ("embedded_model.json", conditions_line),
    "emulated_ops": ("emulated_ops.json", emulated_ops_table),
    "headline": ("embedded_model.json", headline_table),
    "headline_conditions": ("embedded_model.json", headline_conditions),
    "pictures": ("pictures.json", pictures_table),
    "kv_cache": ("kv_cache.json", kv_cache_table),
    "kv_cache_conditions": ("kv_cache.json", kv_cache_conditions),
    "model_sizes": ("model_sizes.json", model_sizes_table),
    "pictures_conditions": ("pictures.json", pictures_conditions),
    "pictures_untuned": ("pictures.json", untuned_pictures_table),
    **{name: ("ablations.json", table) for name, table in ABLATION_TABLES.items()},
}
FILES = (
    "README.md",
    "docs/batch.md",
    "docs/engine.md",
    "docs/exactness.md",
    "docs/kernels.md",
    "docs/kv_cache.md",
    "docs/models.md",
    "docs/performance.md",
    "docs/sjd2.md",
)


def filled(text: str, results_folder: Path = RESULTS) -> str:
    """``text`` with every table written anew; where there are no results it says so."""

    def replace(match: re.Match) -> str:
        if match[2] in GPU_TABLES:
            return "\n".join((match[1], GPU_TABLES[match[2]](results_folder / "gpu"), match[3]))
        results, table = TABLES[match[2]]
        path = results_folder / results
        body = table(json.loads(path.read_text())) if path.exists() else ""
        return "\n".join((match[1], body or "*Not run yet.*", match[3]))

    return re.sub(r"(<!-- table (\w+) -->)\n(?:.*?\n)??(<!-- end -->)", replace, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is not current")
    options = parser.parse_args()
    stale = 0
    for name in FILES:
        text = (ROOT / name).read_text()
        new = filled(text)
        if new == text:
            continue
        if options.check:
            print(f"{name}: its tables differ from benchmarks/results; run `python benchmarks/tables.py`", file=sys.stderr)
            stale = 1
        else:
            (ROOT / name).write_text(new)
    return stale


if __name__ == "__main__":
    sys.exit(main())
