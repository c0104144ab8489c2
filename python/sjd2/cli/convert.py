"""``sjd2 convert``: published checkpoints that Transformers does not read, to folders that ``sjd2`` does."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser"]

_EXAMPLE = """example:
  sjd2 convert llamagen --gpt t2i_XL_stage2_512.pt --vq vq_ds16_t2i.pt --text-encoder google/flan-t5-xl --image-size 512 -o llamagen-xl-512
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "convert", help="make a model folder of a published checkpoint", description="Make a model folder of a checkpoint in its authors' format."
    )
    families = parser.add_subparsers(title="families", required=True, metavar="FAMILY")
    llamagen = families.add_parser(
        "llamagen",
        help="LlamaGen, text to image",
        description="Make a model folder of a text-conditional LlamaGen.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = llamagen.add_argument
    add("--gpt", required=True, metavar="FILE", help="checkpoint of the model, such as t2i_XL_stage2_512.pt")
    add("--vq", required=True, metavar="FILE", help="checkpoint of its image tokenizer, vq_ds16_t2i.pt")
    add("--text-encoder", required=True, metavar="NAME_OR_PATH", help="folder or hub name of its T5, google/flan-t5-xl")
    add("--image-size", required=True, type=int, metavar="PIXELS", help="of an image's side: 256 for stage 1, 512 for stage 2")
    add("--heads", type=int, metavar="N", help="attention heads, where the model has none of the published widths")
    add("-o", "--output", required=True, metavar="DIR", help="folder to be made")
    llamagen.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert and report."""
    from ..adapters.llamagen_convert import convert_llamagen

    folder = convert_llamagen(options.gpt, options.vq, options.text_encoder, options.output, image_size=options.image_size, heads=options.heads)
    print(f"{folder}: done")
    return 0
