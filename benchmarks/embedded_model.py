"""Tokens per forward, pictures and wall-clock of every method on the embedded model: ``make bench``.

Two runs of ``sjd2 bench`` over held-out prompts: one in batches for compression and picture checks, and one of one image at a time for wall-clock,
whose ratios to ``ar`` are paired by prompt. Both go on where they were interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from conditions import conditions, weights_digest
from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.bench import BenchSettings, code_digest, embedded_measures, run_bench, summarise, table, variants_of
from sjd2.tiny_scenes.prompts import held_out_prompts

WINDOWS = (8, 16, 32, 64)


def measured(pipeline: TextToImagePipeline, options: argparse.Namespace, count: int, batch_size: int, work: Path) -> list[dict[str, Any]]:
    """Figures of ``ar``, and of every other method at every window, over ``count`` held-out prompts."""
    defaults, prompts = pipeline.adapter.defaults, held_out_prompts(count)
    variants = variants_of(
        options.methods,
        windows=options.windows,
        guidance_scales=[options.guidance_scale],
        temperatures=[defaults.temperature],
        top_k=defaults.top_k,
        top_p=defaults.top_p,
    )
    settings = BenchSettings(tuple(prompts), tuple(variants), batch_size=batch_size)
    rows = summarise(settings, run_bench(pipeline, settings, work, progress_bar=sys.stderr.isatty()), embedded_measures(pipeline.adapter))
    print(table(rows), flush=True)
    return rows


def compression(row: dict[str, Any]) -> dict[str, Any]:
    """Tokens per forward and picture checks of a row."""
    mean = row["tokens_per_forward"]
    shown = {name: figure["value"] for name, figure in row["quality"].items()}
    return {"method": row["method"], "window": row["window"], "tokens_per_forward": mean["value"], "error": (mean["high"] - mean["low"]) / 2, **shown}


def wall_clock(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds per image, and the speed-up over ``ar``, of a row."""
    outside = row["other_seconds_per_picture"]  # not known where CUDA graphs were replayed
    gain = row.get("speed_up", {"value": 1.0, "least": 1.0, "most": 1.0})  # ar beside itself
    return {
        "method": row["method"],
        "window": row["window"],
        "seconds": row["seconds_per_picture"],
        "share_outside_forward": None if outside is None else outside / row["seconds_per_picture"],
        "speed_up": gain["value"],
        "speed_up_range": [gain["least"], gain["most"]],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=48, help="held-out prompts for compression (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=8, help="images timed per setting (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="default: all of them")
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS, help="of every method but ar (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="a TinyScenes folder (default: the embedded one)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--work", type=Path, help="where cells are kept (default: in out/embedded_model, by the state of the code)")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    pipeline = TextToImagePipeline.from_pretrained(options.model, device=options.device)
    scale, work = options.guidance_scale, options.work or Path("out/embedded_model") / code_digest()
    compressed = measured(pipeline, options, options.prompts, 16, work / "compression")
    timed = measured(pipeline, options, options.timed, 1, work / "wall_clock")
    figures = {
        "conditions": conditions(options.device),
        "weights": weights_digest(options.model),
        "guidance_scale": scale,
        "prompts": options.prompts,
        "timed": options.timed,
        "compression": [compression(row) for row in compressed],
        "wall_clock": [wall_clock(row) for row in timed],
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
