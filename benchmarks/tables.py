"""Write the README's tables from stored results: ``python benchmarks/tables.py``; with ``--check``, say whether they are current.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "embedded_model.json"


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


def conditions_line(results: dict) -> str:
    """What the figures were measured under."""
    facts, model = results["conditions"], results["model"]
    return (
        "Tokens per forward (`ar`: 1), then the gain in time at the best window. "
        f"Held-out prompts: {results['prompts']}, guidance {results['guidance_scale']:g}, 95 % confidence intervals; "
        f"the model's held-out NLL is {model['held_out_pairs_nll']:.2f} nats per token, its entropy {model['held_out_pairs_entropy']:.2f}. "
        f"Time: one image at a time, median over {results['timed']} prompts paired with `ar` on the same engine in the same process; "
        f"{facts['device']}, PyTorch {facts['torch']}, Transformers {facts['transformers']}, commit {facts['commit']}."
        + ("" if "NVIDIA" in facts["device"] else " Not measured on a GPU.")
    )


TABLES = {"compression": compression_table, "conditions": conditions_line}


def filled(text: str, results: dict) -> str:
    """``text`` with every table written anew."""

    def replace(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]](results)}\n{match[3]}"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?\n(<!-- end -->)", replace, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is not current")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = filled(text, json.loads(RESULTS.read_text()))
    if options.check:
        if new != text:
            print("README.md: its tables differ from benchmarks/results; run `python benchmarks/tables.py`", file=sys.stderr)
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
