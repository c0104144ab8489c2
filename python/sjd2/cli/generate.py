"""``sjd2 generate``: prompts to picture files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..cache import CACHES
from ..decoding import INITIALISATIONS, PRESETS
from ..files import write_atomically
from ..pipeline import TextToImagePipeline
from .output import PictureFiles, checked_json_path

__all__ = ["add_parser"]

_EPILOG = """methods:
{methods}

example:
  sjd2 generate "a red coat on a yellow background" --seed 1 -o coat.png
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    methods = "\n".join(f"  {preset.name:12} {preset.summary} (window {preset.window})" for preset in PRESETS.values())
    parser = commands.add_parser(
        "generate",
        help="make pictures of prompts",
        description="Make pictures of prompts. Sampling settings that are not given are the model's own.",
        epilog=_EPILOG.format(methods=methods),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="what to draw; several prompts make several pictures")
    parser.add_argument("--method", default="mc-sjd", metavar="M", help="see below (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture; the next one's is one higher (default: 0)")
    parser.add_argument("--num-images", type=int, default=1, metavar="B", help="pictures of every prompt (default: 1)")
    parser.add_argument(
        "--window", type=_window, metavar="W", help="drafts per forward (default: the method's); auto: what proves fastest over the first pictures"
    )
    parser.add_argument("--initialisation", metavar="I", help=f"of fresh drafts: {', '.join(INITIALISATIONS)} (default: the method's)")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="threshold of sjd++ (default: 0.3)")
    parser.add_argument("--guidance-scale", type=float, metavar="S", help="classifier-free guidance; 1 is off")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance steers away from (default: the model's)")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="of the pictures, where the model makes several sizes")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="of the pictures")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="0 keeps all ids")
    parser.add_argument("--top-p", type=float, metavar="P", help="1 keeps all ids")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a folder or hub name (default: the model that ships with the package)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda … (default: the GPU if there is one)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures decoded together (default: %(default)s)")
    parser.add_argument(
        "--cache", default="ragged", metavar="C", help=f"{' or '.join(CACHES)}: how keys and values are stored (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FILE_OR_DIR", help="picture file, or folder for several (default: named after the prompt, here)")
    parser.add_argument("--upscale", type=int, metavar="N", help="enlarge pictures N times (default: until the shorter side has 256 pixels)")
    parser.add_argument("--json", metavar="FILE", help="write prompt, method, seed, tokens and figures of every picture")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no report")
    parser.set_defaults(run=run)


def _window(value: str) -> int | str:
    return value if value == "auto" else int(value)


_window.__name__ = "whole number, or auto,"  # what argparse calls a value that is neither


def run(options: argparse.Namespace) -> int:
    """Decode, write, report."""
    prompts = [prompt for prompt in options.prompt for _ in range(max(options.num_images, 1))]
    files = PictureFiles(options.output, prompts, options.seed, options.upscale)
    json_path = checked_json_path(options.json)
    pipeline = TextToImagePipeline.from_pretrained(options.model, device=options.device)
    missing = pipeline.adapter.missing_decoder
    if missing is not None and json_path is None:
        raise ValueError(f"--json: needed where there is nothing but tokens to write: {missing}")
    output = pipeline(
        options.prompt,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        method=options.method,
        seed=options.seed,
        num_images_per_prompt=options.num_images,
        window=options.window,
        initialisation=options.initialisation,
        keep_ratio=options.keep_ratio,
        guidance_scale=options.guidance_scale,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        batch_size=options.batch_size,
        cache=options.cache,
        progress_bar=not options.quiet and sys.stderr.isatty(),
    )
    for index, report in enumerate(output.reports):
        place = files.paths[index] if missing is None else json_path
        if missing is None:
            files.save(output.images[index], files.paths[index])
        if not options.quiet:
            print(
                f"{place}: {len(report.tokens)} tokens in {report.forwards} forwards ({report.method}; plain AR takes {len(report.tokens)}), "
                f"{report.tokens_per_forward:.2f} tokens per forward, {report.seconds:.2f} s"
            )
    if json_path is not None:
        text = json.dumps([report.to_dict() for report in output.reports], indent=1) + "\n"
        write_atomically(json_path, lambda scratch: Path(scratch).write_text(text))
    return 0
