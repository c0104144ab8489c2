"""Tokens per forward, pictures and wall-clock of every method on the embedded model: ``make bench``.

Compression and picture checks are taken over held-out prompts. Wall-clock is taken one image at a time, methods in turn on the
same prompt and in the same process, after one image of each to warm up; its ratios to ``ar`` are paired by prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from conditions import conditions, weights_digest
from intervals import mean_and_error
from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.judge import Judge
from sjd2.tiny_scenes.prompts import held_out_prompts

WINDOWS = (8, 16, 32, 64)


def settings(windows: tuple[int, ...]) -> list[tuple[str, int]]:
    """``ar``, and every other method at every window."""
    return [("ar", 1)] + [(method, window) for method in PRESETS if method != "ar" for window in windows]


def compression(pipeline: TextToImagePipeline, judge: Judge, prompts: list[str], guidance_scale: float) -> list[dict]:
    """Tokens per forward and picture checks of every setting."""
    rows = []
    for method, window in settings(WINDOWS):
        output = pipeline(prompts, method=method, window=window, guidance_scale=guidance_scale, batch_size=16)
        mean, error = mean_and_error([report.tokens_per_forward for report in output.reports])
        shown = {name: float(values.mean()) for name, values in judge(prompts, output.tokens).items()}
        row = {"method": method, "window": window, "tokens_per_forward": mean, "error": error, **shown}
        print(
            f"{method:8} W {window:3}  {mean:5.2f} ± {error:.2f} tokens per forward   background {row['background_right']:4.0%}  "
            f"colour {row['colour_right']:4.0%}  garment {row['garment_right']:4.0%}",
            flush=True,
        )
        rows.append(row)
    return rows


def wall_clock(pipeline: TextToImagePipeline, prompts: list[str], guidance_scale: float) -> list[dict]:
    """Seconds per image, and the speed-up over ``ar``, of every setting."""
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {setting: [] for setting in settings(WINDOWS)}
    for number, prompt in enumerate([prompts[0], *prompts]):
        for method, window in seconds:
            report = pipeline(prompt, method=method, window=window, guidance_scale=guidance_scale, seed=number).reports[0]
            if number:
                seconds[method, window].append((report.seconds, report.forward_seconds))
    rows = []
    for (method, window), times in seconds.items():
        gains = [plain[0] / mine[0] for plain, mine in zip(seconds["ar", 1], times, strict=True)]
        row = {
            "method": method,
            "window": window,
            "seconds": statistics.median(whole for whole, _ in times),
            "share_outside_forward": statistics.median(1 - forward / whole for whole, forward in times),
            "speed_up": statistics.median(gains),
            "speed_up_range": [min(gains), max(gains)],
        }
        print(
            f"{method:8} W {window:3}  {row['seconds']:6.3f} s per image  {row['speed_up']:5.2f}x ar "
            f"({min(gains):.2f}–{max(gains):.2f})  outside the forward {row['share_outside_forward']:4.0%}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=48, help="held-out prompts for compression (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=8, help="images timed per setting (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="a TinyScenes folder (default: the embedded one)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    pipeline = TextToImagePipeline.from_pretrained(options.model, device=options.device)
    print(f"guidance {options.guidance_scale}, {options.prompts} held-out prompts")
    figures = {
        "conditions": conditions(options.device),
        "weights": weights_digest(options.model),
        "guidance_scale": options.guidance_scale,
        "prompts": options.prompts,
        "timed": options.timed,
        "compression": compression(pipeline, Judge(pipeline.adapter, options.model), held_out_prompts(options.prompts), options.guidance_scale),
        "wall_clock": wall_clock(pipeline, held_out_prompts(options.timed), options.guidance_scale),
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
