"""What each part of SJD2 does, on the embedded model at guidance 3: ``make ablations``.

Every cell decodes the same held-out prompts at the same seeds, so cells are compared image by image. A cell is kept in ``--work`` when it is
done: an interrupted run goes on where it stopped, several processes may share the folder, and nothing is read that other settings, weights or
code made. A group is added to the results when its cells are done; groups of earlier runs stay, if they were measured under the same
circumstances (``--images`` may differ: a few minutes or hours, as a group deserves).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ablation_cells import GUIDANCE, Plan
from ablation_figures import best_windows, compression, quality
from ablation_runs import DECISIVE, Runs
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.bench.intervals import CONFIDENCE, mean_and_error
from sjd2.files import write_atomically
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


def figures(plan: Plan, runs: Runs, name: str) -> dict[str, Any]:
    """Of a group whose cells are all stored."""
    places = plan.groups[name]
    if name != "quality":
        found = compression(places, runs.stored)
        if name == "methods":
            found["best"] = best_windows(places, runs.stored)
    else:
        # The classifier and the picture tokenizer are the embedded model's; likelihood is that under the untuned one, where there is one.
        judge = Judge(runs.pipelines["base" if "base" in runs.pipelines else "tuned"].adapter, EMBEDDED_MODEL)
        found = quality(places, runs.stored, lambda tokens: judge(runs.prompts, tokens))
    return {"images": len(runs.prompts), **found}


def circumstances(runs: Runs) -> dict[str, Any]:
    """What all groups of a result share; the number of images may differ."""
    settings = {"guidance_scale": GUIDANCE, **runs.sampling, "batch_size": runs.batch_size, "confidence": CONFIDENCE}
    return {"weights": runs.weights, "code": runs.code, "settings": settings}


def earlier_groups(path: Path, runs: Runs) -> dict[str, Any]:
    """Groups that were measured before under the same circumstances."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    same_machine = all(before["conditions"][name] == runs.conditions[name] for name in DECISIVE)
    if same_machine and all(before.get(name) == value for name, value in circumstances(runs).items()):
        return before["groups"]
    print(f"{path}: measured with other weights, code, settings or elsewhere; it will be written anew", flush=True)
    return {}


def write(path: Path, plan: Plan, runs: Runs, groups: dict[str, Any]) -> None:
    """The results so far, in one step."""
    in_order = {name: groups[name] for name in plan.groups if name in groups}
    text = json.dumps({"conditions": runs.conditions, **circumstances(runs), "groups": in_order}, indent=1) + "\n"
    write_atomically(path, lambda scratch: scratch.write_text(text))


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
    adapter = runs.pipelines["tuned"].adapter
    plan = Plan(adapter.image_embeddings().shape[1], options.base is not None, adapter.denoising)
    groups = earlier_groups(options.output, runs) if options.output else {}
    for name in options.only:
        run(plan, runs, name)
        groups[name] = figures(plan, runs, name)
        if options.output:
            write(options.output, plan, runs, groups)


if __name__ == "__main__":
    main()
