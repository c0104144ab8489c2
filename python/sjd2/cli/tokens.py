"""``sjd2 tokens``: a folder of images to the tokens that ``sjd2 finetune`` trains on."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from ..arguments import whole
from ..cluster import Actors
from .model_options import adapter_entries, add_model_options
from .options import add_ray_options

__all__ = ["add_parser"]

_EXAMPLES = """examples:
  sjd2 tokens pictures -o tokens.jsonl
  sjd2 tokens pictures -o tokens.jsonl --model FOLDER --ray --actors 8 --gpus-per-actor 1
  sjd2 finetune --data tokens.jsonl --steps 2000 -o tuned
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "tokens",
        help="encode images before tuning, on one machine or many",
        description="Encode a folder of images by a model's own image tokenizer. Beside the images lies metadata.jsonl, with a line "
        '{"file_name": "0.png", "text": "a caption"} for each. The file is written when all are encoded; one that cannot be read is an error.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="folder of images")
    add("-o", "--output", required=True, metavar="FILE", help="a .jsonl file, for --data of sjd2 finetune")
    add_model_options(parser)
    add("--height", type=int, metavar="PIXELS", help="of the images, where the model makes several sizes (default: the model's)")
    add("--width", type=int, metavar="PIXELS", help="likewise")
    add("--batch-size", type=int, default=32, metavar="N", help="images encoded together (default: %(default)s)")
    add_ray_options(parser)
    add("--quiet", action="store_true", help="no report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Encode, report."""
    # Here, because the trainer beside it takes seconds to import.
    from ..training import prepare_tokens

    batch_size, count = whole("--batch-size", options.batch_size, 1), whole("--actors", options.actors, 1)
    if options.ray is not None and options.device is not None:
        raise ValueError(f"--device: expected none with --ray, where --gpus-per-actor says it, got {options.device}")
    actors = None if options.ray is None else Actors(count, options.gpus_per_actor, options.cpus_per_actor, options.ray)
    report = (lambda line: None) if options.quiet else functools.partial(print, flush=True)
    prepare_tokens(
        options.data,
        options.output,
        model=options.model,
        adapter=adapter_entries(options),
        height=options.height,
        width=options.width,
        actors=actors,
        device=options.device,
        batch_size=batch_size,
        report=report,
    )
    report(f"{options.output}: done")
    return 0
