"""``sjd2 generate``: prompts to picture files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..pipeline import PipelineOutput, TextToImagePipeline
from ..tracing import Recorder, traces_of
from .model_options import adapter_entries, add_model_options
from .options import add_denoising_options, add_method_options, add_picture_options, methods_help, window
from .output import PictureFiles, checked_json_path, trace_paths

__all__ = ["add_parser"]

_EPILOG = """methods:
{methods}

example:
  sjd2 generate "a red coat on a yellow background" --seed 1 -o coat.png
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "generate",
        help="make pictures of prompts",
        description="Make pictures of prompts. Sampling settings that are not given are the model's own.",
        epilog=_EPILOG.format(methods=methods_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", nargs="+", metavar="PROMPT", help="what to draw; several prompts make several pictures")
    add("--method", default="mc-sjd", metavar="M", help="see below (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the first picture; the next one's is one higher (default: 0)")
    add("--num-images", type=int, default=1, metavar="B", help="pictures of every prompt (default: 1)")
    add("--window", type=window, metavar="W", help="drafts per forward (default: the method's); auto: what proves fastest over the first pictures")
    add("--guidance-scale", type=float, metavar="S", help="classifier-free guidance; 1 is off")
    add("--temperature", type=float, metavar="T", help="0 is greedy")
    add_method_options(parser)
    add_denoising_options(parser)
    add_picture_options(parser)
    add_model_options(parser)
    add("--batch-size", type=int, default=8, metavar="N", help="pictures decoded together (default: %(default)s)")
    add("-o", "--output", metavar="FILE_OR_DIR", help="picture file, or folder for several (default: named after the prompt, here)")
    add("--upscale", type=int, metavar="N", help="enlarge pictures N times (default: until the shorter side has 256 pixels)")
    add("--json", metavar="FILE", help="write prompt, method, seed, tokens and figures of every picture")
    add("--trace", metavar="FILE", help="write what every forward committed and drafted, for `sjd2 plot`; one .npz file per picture")
    add("--quiet", action="store_true", help="no progress bar, no report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Decode, write, report."""
    prompts = [prompt for prompt in options.prompt for _ in range(max(options.num_images, 1))]
    files = PictureFiles(options.output, prompts, options.seed, options.upscale)
    json_path = checked_json_path(options.json)
    traces = trace_paths(options.trace, len(prompts))
    recorder = Recorder() if traces else None
    pipeline = TextToImagePipeline.from_pretrained(options.model, adapter=adapter_entries(options), device=options.device)
    if options.compile:
        pipeline.compile()
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
        clean=options.clean,
        levels=options.levels,
        guidance_scale=options.guidance_scale,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        batch_size=options.batch_size,
        cache=options.cache,
        attention=options.attention,
        callback=recorder,
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
    if recorder is not None:
        _write_traces(pipeline, output, recorder, traces, options)
    if json_path is not None:
        text = json.dumps([report.to_dict() for report in output.reports], indent=1) + "\n"
        write_atomically(json_path, lambda scratch: Path(scratch).write_text(text))
    return 0


def _write_traces(pipeline: TextToImagePipeline, output: PipelineOutput, recorder: Recorder, paths: list[Path], options: argparse.Namespace) -> None:
    """Write a trace of every picture, with the settings it was sampled with."""
    adapter = pipeline.adapter
    sampling = {}
    for name in ("guidance_scale", "temperature", "top_k", "top_p"):
        value = getattr(options, name)
        sampling[name] = getattr(adapter.defaults, name) if value is None else value
    grid = adapter.grid_of(options.height, options.width)
    for path, trace in zip(paths, traces_of(recorder, output, adapter.layout(1, grid), grid, **sampling), strict=True):
        trace.save(path)
        if not options.quiet:
            print(f"{path}: trace")
