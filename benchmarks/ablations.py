"""What each part of SJD2 does, on the embedded model at guidance 3: ``make ablations``.

Every cell decodes the same held-out prompts at the same seeds, so cells are compared image by image. A cell is kept in ``--work`` when it is
done: an interrupted run goes on where it stopped, several processes may share the folder, and nothing is read that other settings, weights or
code made. The results hold every group that is complete, also those of earlier runs with ``--only``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from ablation_cells import GUIDANCE, Plan
from ablation_figures import compression, quality
from ablation_runs import Runs
from intervals import CONFIDENCE, mean_and_error
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.judge import Judge
from sjd2.tiny_scenes.prompts import held_out_prompts


def _images(text: str) -> int:
    count, most = int(text), len(held_out_prompts())
    if not 2 <= count <= most:
        raise argparse.ArgumentTypeError(f"expected 2 to {most}, one per held-out prompt, got {count}")
    return count


def run(plan: Plan, runs: Runs, name: str) -> None:
    """Run what is not stored yet of a group, and show every cell as it is done."""
    missing = [cell for cell in plan.cells([name]) if not runs.is_stored(cell)]
    print(f"{name}: {len(plan.groups[name])} cells, {len(missing)} to run", flush=True)
    for number, cell in enumerate(missing, start=1):
        if runs.is_stored(cell):  # by another process since, or another name of the same weights
            continue
        outcome = runs.run(cell)
        mean, error = mean_and_error(outcome.tokens_per_forward.tolist())
        at = next((place.at for place in plan.groups[name] if place.cell == cell), {"model": cell.model, "method": cell.preset.name})
        print(
            f"  {time.strftime('%H:%M:%S')}  {number:3} of {len(missing):3}  {mean:5.2f} ± {error:.2f} tokens per forward  {cell.inputs:3} inputs  "
            f"{outcome.seconds:6.2f} s an image   " + ", ".join(f"{key} {value}" for key, value in at.items()),
            flush=True,
        )


def collect(plan: Plan, runs: Runs) -> dict[str, Any]:
    """Figures of every group whose cells are all stored."""
    groups = {}
    for name, places in plan.groups.items():
        if not all(map(runs.is_stored, plan.cells([name]))):
            continue
        if name == "quality":
            # The classifier and the picture tokenizer are the embedded model's; likelihood is that under the untuned one, where there is one.
            judge = Judge(runs.pipelines["base" if "base" in runs.pipelines else "tuned"].adapter, EMBEDDED_MODEL)
            groups[name] = quality(places, runs.stored, lambda tokens, judge=judge: judge(runs.prompts, tokens))
        else:
            groups[name] = compression(places, runs.stored)
    return groups


def write(path: Path, plan: Plan, runs: Runs) -> None:
    """The results so far, in one step."""
    settings = {"images": len(runs.prompts), "guidance_scale": GUIDANCE, **runs.sampling, "batch_size": runs.batch_size, "confidence": CONFIDENCE}
    results = {"conditions": runs.conditions, "weights": runs.weights, "settings": settings, "groups": collect(plan, runs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    names = list(Plan(width=1, with_base=False).groups)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tuned", type=Path, default=EMBEDDED_MODEL, help="folder of the tuned model (default: the embedded one)")
    parser.add_argument("--base", type=Path, help="folder of the untuned model, to run the methods on it too")
    parser.add_argument("--images", type=_images, default=100, help="held-out prompts a cell, one image each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="GROUP", default=names, help=f"run a part: {', '.join(names)}")
    parser.add_argument("--batch-size", type=int, default=16, help="images decoded together (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("out/ablations"), help="where cells are kept (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    folders = {"tuned": options.tuned} | ({"base": options.base} if options.base else {})
    runs = Runs(folders, held_out_prompts(options.images), options.work, device=options.device, batch_size=options.batch_size)
    plan = Plan(width=runs.pipelines["tuned"].adapter.image_embeddings().shape[1], with_base=options.base is not None)
    for name in options.only:
        run(plan, runs, name)
        if options.output:
            write(options.output, plan, runs)


if __name__ == "__main__":
    main()
