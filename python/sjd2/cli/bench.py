"""``sjd2 bench``: methods compared on the same prompts and seeds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..pipeline import TextToImagePipeline
from ..plotting import require_matplotlib
from ..prompt_files import read_prompt_file
from ..tiny_scenes.prompts import held_out_prompts
from .model_options import adapter_entries, add_model_options
from .options import add_denoising_options, add_method_options, add_picture_options, methods_help, window

__all__ = ["add_parser"]

_EPILOG = """methods:
{methods}

prompt files:
  a .txt file    a prompt per line
  a .jsonl file  a line {{"prompt": "a caption"}} each, such as GenEval's evaluation_metadata.jsonl
  a .json file   COCO's captions, such as captions_val2014.json: the first caption of every image

in the output folder:
  results.json, results.csv   the figures: a row per method and setting
  *.png                       tokens per forward, their histogram, seconds, and acceptance where guidance or temperature vary
  cells.jsonl, settings.json  every picture's tokens and figures, kept as they come

An interrupted run goes on when the same command is given again. `sjd2 eval DIR` measures the pictures of a run.

example:
  sjd2 bench --prompts prompts.txt --methods ar jacobi mc-sjd sjd2 -o out/bench
  sjd2 bench --prompts prompts.txt --methods ar mc-sjd --window 16 32 64 --guidance-scale 1 2 4 --temperature 0.8 1 -o out/grid
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "bench",
        help="compare methods on the same prompts and seeds",
        description="Compare methods on the same prompts and seeds, in one process and in turn: forwards, tokens per forward, seconds, memory, "
        "and quality where it can be measured. Where several values are given for a setting, every method runs with each of them.",
        epilog=_EPILOG.format(methods=methods_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--prompts", metavar="FILE", help="what to draw, see below (default, for the model that ships with the package: captions of its own)")
    add("--limit", type=int, metavar="N", help="take the first N prompts (default: all of a file, 8 captions)")
    add("--methods", nargs="+", default=["ar", "jacobi", "sjd", "mc-sjd", "sjd2"], metavar="M", help="see below (default: ar jacobi sjd mc-sjd sjd2)")
    add(
        "--window",
        type=window,
        nargs="+",
        metavar="W",
        help="drafts per forward of every method but ar (default: each method's own); auto: what proves fastest over the first pictures",
    )
    add("--guidance-scale", type=float, nargs="+", metavar="S", help="classifier-free guidance; 1 is off (default: the model's)")
    add("--temperature", type=float, nargs="+", metavar="T", help="0 is greedy (default: the model's)")
    add_method_options(parser)
    add_denoising_options(parser)
    add_picture_options(parser)
    add_model_options(parser)
    add("--seed", type=int, default=0, metavar="N", help="of the first picture, for every method; the next one's is one higher (default: 0)")
    add("--num-images", type=int, default=1, metavar="B", help="pictures of every prompt (default: 1)")
    add("--batch-size", type=int, default=1, metavar="N", help="pictures decoded together; seconds are those of a lone user at 1 (default: 1)")
    add(
        "--no-graphs",
        dest="graphs",
        action="store_const",
        const=False,
        help="on a GPU no CUDA graphs: seconds are split into forward and the rest then",
    )
    add("-o", "--output", required=True, metavar="DIR", help="folder of the results, new or of the same run")
    add("--restart", action="store_true", help="begin anew: throw away the figures that the folder holds")
    add("--no-plots", dest="plots", action="store_false", help="no pictures of the figures, which need matplotlib")
    add("--quiet", action="store_true", help="no progress bar, no table")
    parser.set_defaults(run=run)


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit: expected a whole number >= 1, got {options.limit}")
    if options.prompts is not None:
        return read_prompt_file(options.prompts, "--prompts")[: options.limit]
    if options.model is not None:
        raise ValueError("--prompts: expected a file of prompts, since --model is given")
    return held_out_prompts(options.limit or 8)


def run(options: argparse.Namespace) -> int:
    """Run what is not yet done, write, report."""
    from ..bench import (
        BenchSettings,
        Store,
        device_name,
        draw_bench,
        embedded_measures,
        run_bench,
        summarise,
        table,
        variants_of,
        write_csv,
        write_json,
    )

    if options.plots:
        try:
            require_matplotlib()
        except ImportError as error:
            raise ImportError(f"{error}; or go without by --no-plots") from error
    prompts = _prompts(options)
    Store(options.output)  # whether results can be written is known before the model is loaded
    pipeline = TextToImagePipeline.from_pretrained(options.model, adapter=adapter_entries(options), device=options.device)
    defaults = pipeline.adapter.defaults
    settings = BenchSettings(
        prompts=tuple(prompts),
        variants=tuple(
            variants_of(
                options.methods,
                windows=options.window or [None],
                initialisation=options.initialisation,
                keep_ratio=options.keep_ratio,
                clean=options.clean,
                levels=options.levels,
                guidance_scales=options.guidance_scale or [defaults.guidance_scale],
                temperatures=options.temperature or [defaults.temperature],
                top_k=defaults.top_k if options.top_k is None else options.top_k,
                top_p=defaults.top_p if options.top_p is None else options.top_p,
            )
        ),
        seed=options.seed,
        num_images=options.num_images,
        batch_size=options.batch_size,
        cache=options.cache,
        attention=options.attention,
        compile=options.compile,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        graphs=options.graphs,
    )
    folder = Path(options.output)
    try:
        cells = run_bench(pipeline, settings, folder, restart=options.restart, progress_bar=not options.quiet and sys.stderr.isatty())
    except KeyboardInterrupt:
        if (folder / "settings.json").exists():
            print(f"{len(Store(folder).cells())} cells are kept in {folder}; the same command goes on", file=sys.stderr)
        raise
    rows = summarise(settings, cells, embedded_measures(pipeline.adapter))
    write_json(folder / "results.json", {"settings": Store(folder).settings, "rows": rows})
    write_csv(folder / "results.csv", rows)
    drawn = draw_bench(rows, folder) if options.plots else []
    if not options.quiet:
        where = device_name(pipeline.adapter.device)
        print(f"{len(settings.pictures)} pictures of each, {options.batch_size} at a time, on {where}; means with 95 % intervals\n")
        print(table(rows))
        print(f"\n{folder}: results.json, results.csv{''.join(f', {path.name}' for path in drawn)}")
    return 0
