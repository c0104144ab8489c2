"""What a cluster costs: the same batch by two processes that were started by hand, and by two Ray actors, in turn.

``python benchmarks/batch_overhead.py -o benchmarks/results/batch_overhead.json``. Seconds are those between the first and the last picture, so that
the start of Python, models and Ray is apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conditions import conditions, weights_digest
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.prompts import held_out_prompts

SJD2 = str(Path(sys.executable).with_name("sjd2"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _finished(folder: Path) -> list[float]:
    rows = [json.loads(line) for path in folder.glob("manifest*.jsonl") for line in path.read_text().splitlines()]
    assert all(row["status"] == "done" for row in rows)
    return sorted(row["finished"] for row in rows)


def _run(commands: list[list[str]], folder: Path) -> dict[str, float]:
    """Seconds of commands that run beside each other, and of those between the first and the last picture, per picture."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    running = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"{' '.join(commands[0])}: exit codes {codes}")
    at = _finished(folder)
    return {"pictures": len(at), "seconds": seconds, "seconds_per_picture": (at[-1] - at[0]) / (len(at) - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prompts, out = Path(scratch) / "prompts.txt", Path(scratch) / "out"
        captions = held_out_prompts(options.pictures)
        prompts.write_text("\n".join(captions[i % len(captions)] for i in range(options.pictures)) + "\n")
        command = [
            SJD2,
            "batch",
            str(prompts),
            "-o",
            str(out),
            "--quiet",
            "--window",
            "16",
            "--batch-size",
            str(options.batch_size),
            "--device",
            "cpu",
        ]
        ways = {"by hand": [[*command, "--shard", f"{index}/2"] for index in range(2)], "ray": [[*command, "--ray", "--actors", "2"]]}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, commands in ways.items():
                runs[name].append(_run(commands, out))
                print(f"{name:8} {runs[name][-1]}", flush=True)
    ratios = [ray["seconds_per_picture"] / hand["seconds_per_picture"] for ray, hand in zip(runs["ray"], runs["by hand"], strict=True)]
    figures = {"conditions": conditions("cpu"), "weights": weights_digest(EMBEDDED_MODEL), "batch_size": options.batch_size, "runs": runs}
    figures |= {"ratio": statistics.median(ratios), "ratios": ratios}
    print(f"Ray over by hand: {figures['ratio']:.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
