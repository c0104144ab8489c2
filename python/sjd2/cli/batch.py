"""``sjd2 batch``: a file of prompts to a folder of pictures."""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..arguments import whole
from ..batch import CHUNK, Actors, BatchFolder, Job, Tally, Worker, read_jobs, run_batch, run_on_ray, shard_of, waiting
from ..batch.jobs import SETTINGS
from ..batch.worker import check_settings
from ..pipeline import TextToImagePipeline
from .model_options import adapter_entries, add_model_options
from .options import add_denoising_options, add_method_options, add_picture_options, add_ray_options, methods_help

__all__ = ["add_parser"]

_EPILOG = """methods:
{methods}

prompt files:
  a .txt file      a prompt per line
  a .jsonl file    {{"prompt": "a caption", "seed": 7, "guidance_scale": 4}} a line; settings that are given hold for this prompt alone
  a .parquet file  the same as columns

in the output folder:
  images/0000/0000012-0.png   first picture of line 12, counted from 0
  manifest.jsonl              a row per picture: prompt, seed, tokens, figures, model and version; or why there is none
  run.json                    what was asked for

The same command goes on where an earlier one stopped, however it was stopped, and makes the same pictures: a seed depends on the prompt and its line.

examples:
  sjd2 batch prompts.txt -o pictures
  sjd2 batch prompts.jsonl -o pictures --shard 0/4         # the first of four machines
  sjd2 batch prompts.jsonl -o pictures --ray --actors 8 --gpus-per-actor 1
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "batch",
        help="make pictures of a file of prompts, resumably, on one machine or many",
        description="Make pictures of all prompts of a file. Sampling settings that are not given are the model's own.",
        epilog=_EPILOG.format(methods=methods_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompts", metavar="PROMPTS", help="a .txt, .jsonl or .parquet file, see below")
    add("-o", "--output", required=True, metavar="DIR", help="folder of the pictures, new or of the same run")
    add("--method", default="mc-sjd", metavar="M", help="see below (default: %(default)s)")
    add("--window", type=int, metavar="W", help="drafts per forward (default: the method's)")
    add("--guidance-scale", type=float, metavar="S", help="classifier-free guidance; 1 is off")
    add("--temperature", type=float, metavar="T", help="0 is greedy")
    add_method_options(parser, attention="model")  # which one is fastest depends on the moment, and rounding on which one it is
    add_denoising_options(parser)
    add_picture_options(parser)
    add_model_options(parser)
    add(
        "--dtype",
        choices=("auto", "float64", "float32", "bfloat16", "float16"),
        help="of the weights (default: float32 on a CPU, else bfloat16)",
    )
    add("--seed", type=int, default=0, metavar="N", help="what the pictures' seeds are derived from, beside prompt and line (default: 0)")
    add("--num-images", type=int, default=1, metavar="B", help="pictures of every prompt (default: 1)")
    add("--batch-size", type=int, default=8, metavar="N", help="pictures decoded together; the next takes the place of one that is done (default: 8)")
    add("--shard", default="0/1", metavar="I/N", help="do every N-th line, from the I-th on: for N processes without a cluster")
    add("--retry-failed", action="store_true", help="try again what failed before")
    add("--no-tokens", dest="tokens", action="store_false", help="no token ids in the manifest")
    add_ray_options(parser)
    add("--quiet", action="store_true", help="no progress bar, no report")
    parser.set_defaults(run=run)


def _shard(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"--shard: expected I/N with I from 0 to N - 1, got {value!r}")
    return int(found[1]), int(found[2])


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = [*SETTINGS, "cache", "attention"]
    return {name: getattr(options, name) for name in names}


def _jobs(options: argparse.Namespace, shard: tuple[int, int]) -> list[Job]:
    num_images = whole("--num-images", options.num_images, 1)
    everyone = list(read_jobs(options.prompts, seed=whole("--seed", options.seed, 0), num_images=num_images))
    if not everyone:
        raise ValueError(f"prompts: expected at least one, got none in {options.prompts}")
    return list(shard_of(everyone, *shard))


def run(options: argparse.Namespace) -> int:
    """Do what is not done yet; 0 if every picture is there, 1 if some failed."""
    shard, settings = _shard(options.shard), _settings(options)
    batch_size, actors = whole("--batch-size", options.batch_size, 1), whole("--actors", options.actors, 1)
    check_settings(settings)
    jobs = _jobs(options, shard)
    folder = BatchFolder(options.output, shard)
    digest = hashlib.sha256(Path(options.prompts).read_bytes()).hexdigest()[:16]
    asked = {
        "prompts": digest,
        "model": options.model,
        "adapter": adapter_entries(options),
        "dtype": options.dtype,
        "compile": options.compile,
        "seed": options.seed,
        "num_images": options.num_images,
        **settings,
    }
    with folder.held(asked):
        recorded = folder.recorded()
        if options.retry_failed or recorded.keys() != {row["id"] for row in folder.manifest.rows()}:
            recorded = {id_: status for id_, status in recorded.items() if status == "done" or not options.retry_failed}
            folder.keep_only(set(recorded))
        left = list(waiting(jobs, recorded))
        tally = _work(options, folder, left, len(jobs), settings, batch_size, actors)
    failed = tally.failed + sum(status == "failed" for status in recorded.values())
    if not options.quiet:
        print(
            f"{folder.folder}: {len(jobs) - failed} of {len(jobs)} pictures are there, {tally.done} of them new "
            f"({tally.rate:.2f} a second), {failed} failed"
        )
        for error in tally.errors[:5]:
            print(f"  {error}", file=sys.stderr)
    return int(failed > 0)


def _load(compiled: bool, model: str | None, **options: Any) -> TextToImagePipeline:
    """The pipeline of a process."""
    pipeline = TextToImagePipeline.from_pretrained(model, **options)
    return pipeline.compile() if compiled else pipeline


def _work(
    options: argparse.Namespace, folder: BatchFolder, left: list[Job], total: int, settings: dict[str, Any], batch_size: int, actors: int
) -> Tally:
    shown = not options.quiet and sys.stderr.isatty()
    if not left:
        return Tally(before=total)
    dtype = options.dtype if options.dtype in (None, "auto") else getattr(torch, options.dtype)
    load = partial(_load, options.compile, options.model, adapter=adapter_entries(options), device=options.device, dtype=dtype)
    how = {"settings": settings, "batch_size": batch_size, "tokens": options.tokens}
    if options.ray is not None:
        pool = Actors(actors, options.gpus_per_actor, options.cpus_per_actor, options.ray)
        # Several for each actor, so that they end at about the same time; large enough that batches seldom run dry.
        chunk = max(batch_size, min(CHUNK * batch_size, -(-len(left) // (4 * actors))))
        return run_on_ray(load, folder, left, total, total - len(left), pool, shown=shown, chunk=chunk, options=how)
    pipeline = load()
    if pipeline.adapter.missing_decoder is not None and not options.tokens:
        raise ValueError(f"--no-tokens: there would be nothing to write: {pipeline.adapter.missing_decoder}")
    worker = Worker(pipeline, folder.folder, folder.picture, **how)
    return run_batch(worker, folder, left, total, total - len(left), shown=shown)
