"""Are the pictures the same, whatever the method: ``python benchmarks/pictures.py -o benchmarks/results/pictures.json``.

Every method draws all held-out prompts. What a law-exact method changes is chance alone, so the difference of any measure to ``ar`` lies
within its confidence interval; ``jacobi`` at the seeds of ``ar`` draws the very same pictures, so it is given other seeds here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from conditions import conditions
from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.judge import Judge
from sjd2.tiny_scenes.prompts import held_out_prompts

#: Seeds of a method start here times its number: no two methods share one.
SEED_STRIDE = 1_000_000


def difference(values: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Mean difference, and the half-width of its 95 % interval. Pairs share a prompt, which the pairing takes out."""
    delta = values - reference
    return float(delta.mean()), float(1.96 * delta.std() / len(delta) ** 0.5)


def sheet(rows: list[list[Image.Image]], path: Path, scale: int = 3) -> None:
    """A row of pictures per method."""
    width, height = rows[0][0].size
    whole = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            whole.paste(image, (x * width, y * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=220, help="held-out prompts (default: %(default)s, all of them)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--sheet", type=Path, help="write a sheet of the first pictures, a row per method")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    pipeline = TextToImagePipeline.from_pretrained(device=options.device)
    judge, prompts = Judge(pipeline.adapter, EMBEDDED_MODEL), held_out_prompts(options.prompts)
    measured, pictures = {}, []
    for number, method in enumerate(PRESETS):
        output = pipeline(prompts, method=method, seed=number * SEED_STRIDE, batch_size=44)
        measured[method] = judge(prompts, output.tokens)
        pictures.append(output.images[:24])
        print(f"{method:8}" + "".join(f"  {name} {float(values.mean()):.3f}" for name, values in measured[method].items()), flush=True)
    rows = []
    for method in PRESETS:
        for name, values in measured[method].items():
            delta, error = difference(values, measured["ar"][name])
            rows.append(
                {"method": method, "exact": PRESETS[method].exact, "measure": name, "mean": float(values.mean()), "delta": delta, "error": error}
            )
            if method != "ar":
                print(f"{method:8} {name:17} differs from ar by {delta:+.3f} ± {error:.3f}{'' if abs(delta) <= error else '  outside'}")
    if options.sheet:
        sheet(pictures, options.sheet)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"conditions": conditions(options.device), "prompts": len(prompts), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
