"""Write the model card from the shipped folder itself: ``python -m sjd2.tiny_scenes.card --out docs``.

Measures the weights as they ship (float16 on disk), makes the held-out pictures, draws the training curves, and fills in the card.
Needs the photos (``python -m sjd2.tiny_scenes.source``) and Matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch

from ..adapters.registry import EMBEDDED_MODEL
from ..adapters.tiny_scenes import TinyScenesAdapter
from ..pipeline import TextToImagePipeline
from .card_tuning import mean_likelihood, tuning_section
from .judge import Judge
from .prompts import GARMENTS, HELD_OUT_PAIRS, held_out_prompts, parse_prompt
from .scenes import SceneSampler
from .source import load_photos
from .train import MODEL_SCHEDULE

__all__ = ["write_card"]

_CARD = """# TinyScenes, the embedded model

A small text-to-image model with real trained weights, so that everything in this package can be tried and measured where no weights can be
downloaded. It draws ten kinds of garment in twelve colours on twelve backgrounds, 32×32 pixels, 256 tokens an image.

![Pictures of held-out pairs](images/tiny_scenes_held_out.png)

*One picture for each of the 20 (garment, colour) pairs that training never saw: `{method}`, seeds 0 to 19, the model's default sampling
(guidance {guidance}, top-k {top_k}, temperature {temperature}). Not selected.*

## What it is

| | |
|---|---|
| architecture | stock `LlamaForCausalLM`, {parameters:.2f} M parameters: 6 layers, width 256, 4 heads |
| text | word-level tokenizer, {words} words; unknown words are named in a warning |
| image tokens | FSQ autoencoder, levels [8, 5, 5, 5] = 1000 codes, 16×16 grid, {fsq_parameters:.2f} M parameters, {psnr:.1f} dB on held-out scenes |
| files | {megabytes:.1f} MB, float16 |
| licence | Apache-2.0; photos: Fashion-MNIST, MIT |

## Data

Scenes are drawn on the fly from Fashion-MNIST's 60,000 training photos: shifted, flipped, tinted with one of twelve colours, on a background of
another. No scene repeats. {held_out} of the 120 (garment, colour) pairs are held out of training altogether; held-out figures below use the
10,000 test photos. One caption in ten is empty, which is what guidance needs. `python -m sjd2.tiny_scenes.source` finds or fetches the photos
(Debian's package `dataset-fashion-mnist`) and checks their SHA-256.

## Training

    python -m sjd2.tiny_scenes.train --out runs/tiny_scenes --compile --export weights

resumes where it stopped when it is given again; this gives the *base* model. What it cost here, on {machine}{note}:

| stage | scenes | seconds | resumed after a kill |
|---|---|---|---|
{stages}

![Training curves](images/tiny_scenes_training.png)

## Figures

Measured on the shipped files, in nats per token over {scenes} scenes each; the uniform distribution over 1000 codes has 6.908.

| | NLL | entropy of the prediction |
|---|---|---|
{likelihoods}

Held-out minus training NLL: {gap:+.3f}. A model that had memorised its scenes would be far above zero.

Pictures of all {prompts} held-out prompts by `ar`, default sampling: background right {background:.1%}, garment's colour right {colour:.1%}
(both read from the pixels), garment named right by the classifier {garment:.1%}. The classifier names {judge:.1%} of real held-out scenes right
(shirts, pullovers and coats look alike at this size).
{tuning}
## Limits

Garments, colours and one background: it knows no other word. Textures are Fashion-MNIST's, outlines can be rough. It is a subject for
measurements, not an image generator to use.

*Written by `python -m sjd2.tiny_scenes.card`.*
"""


def _draw_curves(log: list[dict], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    scenes = [row["scenes"] / 1000 for row in log]
    axes.plot(scenes, [row["train_loss"] for row in log], label="training scenes (mean since the last point)")
    axes.plot(scenes, [row["held_out_photos_nll"] for row in log], label="held-out photos")
    axes.plot(scenes, [row["held_out_pairs_nll"] for row in log], "--", label="held-out photos, held-out pairs")
    resumed = [row["scenes"] / 1000 for before, row in itertools.pairwise(log) if row["resumed"] > before["resumed"]]
    for number, place in enumerate(resumed):
        axes.axvline(place, color="grey", lw=0.8, ls=":", label="first point after a kill" if number == 0 else None)
    axes.set(xlabel="thousand scenes", ylabel="NLL, nats per token", ylim=(None, 2.8))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_pictures(pipeline: TextToImagePipeline, path: Path) -> str:
    """One picture of each held-out pair; returns the method's name."""
    from matplotlib import pyplot as plt

    seen: dict[tuple, str] = {}
    for prompt in held_out_prompts():
        seen.setdefault(parse_prompt(prompt)[:2], prompt)
    prompts = sorted(seen.values(), key=lambda prompt: GARMENTS.index(str(parse_prompt(prompt)[0])))
    output = pipeline(prompts, batch_size=20)
    figure, axes = plt.subplots(4, 5, figsize=(10, 9.2), layout="constrained")
    for axis, image, prompt in zip(axes.T.flat, output.images, prompts, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(prompt.replace(" on ", "\non "), fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return output.reports[0].method


def write_card(
    out: Path, folder: Path = EMBEDDED_MODEL, base: Path | None = None, scenes: int = 512, photos: str | None = None, note: str = ""
) -> None:
    """Write ``model_card.md`` and its pictures into ``out``, from the model in ``folder``; ``base`` is the folder of the model before tuning."""
    machine = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "a CPU")
    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu")
    adapter = pipeline.adapter
    assert isinstance(adapter, TinyScenesAdapter)
    before = None if base is None else TextToImagePipeline.from_pretrained(base, device="cpu").adapter
    assert before is None or isinstance(before, TinyScenesAdapter)
    judge = Judge(adapter, folder)
    log = json.loads((folder / "training_log.json").read_text())
    (out / "images").mkdir(parents=True, exist_ok=True)
    _draw_curves(log["model"], out / "images" / "tiny_scenes_training.png")
    method = _draw_pictures(pipeline, out / "images" / "tiny_scenes_held_out.png")

    train_photos, test_photos = load_photos("train", photos), load_photos("test", photos)
    sets = {
        "training photos, training pairs": SceneSampler(*train_photos, full_captions=True, seed=9).batch(0, scenes),
        "held-out photos, training pairs": SceneSampler(*test_photos, full_captions=True, seed=1).batch(0, scenes),
        "held-out photos, held-out pairs": SceneSampler(*test_photos, full_captions=True, held_out=True, seed=2).batch(0, scenes),
    }
    likelihoods = {name: mean_likelihood(adapter, batch) for name, batch in sets.items()}
    real = sets["held-out photos, held-out pairs"]
    prompts = held_out_prompts()
    measures = judge(prompts, pipeline(prompts, method="ar", batch_size=44).tokens)
    (out / "model_card.md").write_text(
        _CARD.format(
            method=method,
            guidance=adapter.defaults.guidance_scale,
            top_k=adapter.defaults.top_k or "off",
            temperature=adapter.defaults.temperature,
            parameters=sum(p.numel() for p in adapter.model.parameters()) / 1e6,
            words=len(adapter.text),
            fsq_parameters=sum(p.numel() for p in adapter.tokenizer.parameters()) / 1e6,
            psnr=log["tokenizer"][-1]["psnr"],
            megabytes=sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
            held_out=len(HELD_OUT_PAIRS),
            machine=f"{machine}, {torch.get_num_threads()} cores",
            stages="\n".join(
                f"| {name} | {log[stage][-1]['scenes']:,} | {log[stage][-1]['seconds']:,.0f} | {log[stage][-1]['resumed']} |"
                for stage, name in (("tokenizer", "image tokenizer"), ("judge", "classifier"), ("model", f"AR model, {MODEL_SCHEDULE.steps:,} steps"))
            ),
            note=f" ({note})" if note else "",
            tuning=tuning_section(adapter, before, log.get("tuning", {}), sets, min(scenes, 128)),
            scenes=scenes,
            likelihoods="\n".join(f"| {name} | {nll:.3f} | {entropy:.3f} |" for name, (nll, entropy) in likelihoods.items()),
            gap=likelihoods["held-out photos, training pairs"][0] - likelihoods["training photos, training pairs"][0],
            prompts=len(prompts),
            background=float(measures["background_right"].mean()),
            colour=float(measures["colour_right"].mean()),
            garment=float(measures["garment_right"].mean()),
            judge=float((judge.classifier(real.pixels).argmax(1) == real.garment).float().mean()),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sjd2.tiny_scenes.card", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the card (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="default: the embedded model")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the model before tuning, to compare with")
    parser.add_argument("--photos", metavar="DIR", help="folder of the four Fashion-MNIST .gz files (default: find or fetch them)")
    parser.add_argument("--note", default="", metavar="TEXT", help="what else the training machine was doing")
    options = parser.parse_args()
    write_card(options.out, options.model, options.base, photos=options.photos, note=options.note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
