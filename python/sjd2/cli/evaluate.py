"""``sjd2 eval``: published measures of the pictures of a benchmark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from ..adapters import load_adapter
from ..bench.report import aligned, shown_interval
from ..files import check_writable
from .model_options import adapter_entries, add_model_options

__all__ = ["add_parser"]

_EPILOG = """Pictures are drawn by `sjd2 bench`, once; this measures them as often as wanted. Pass the same --model and adapter options.

what needs downloaded weights:
  --clip             any CLIP model of Transformers, by folder or hub name
  --fid              Inception, which torch-fidelity fetches, or --inception-weights; with --fid-features effnet nothing is fetched
  GenEval            scores come from its own evaluator and object detector: this writes the pictures as it reads them, and collects what it writes

GenEval:
  sjd2 bench --model M --prompts geneval/prompts/evaluation_metadata.jsonl --num-images 4 --methods ar sjd2 -o out/geneval
  sjd2 eval out/geneval --model M --geneval geneval/prompts/evaluation_metadata.jsonl out/geneval-pictures
  (for every NAME there: python evaluation/evaluate_images.py out/geneval-pictures/NAME --outfile out/geneval-pictures/NAME.jsonl ...)
  and the second command again, which then shows the scores

COCO:
  sjd2 bench --model M --prompts captions_val2014.json --limit 5000 --methods ar sjd2 -o out/coco
  sjd2 eval out/coco --model M --clip openai/clip-vit-large-patch14 --fid val2014
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "eval",
        help="measure pictures: CLIP-Score, FID, GenEval",
        description="Measure the pictures that `sjd2 bench` drew, method by method; results go to eval.json in its folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="folder of a benchmark")
    add("--clip", metavar="NAME_OR_PATH", help="measure CLIP-Score by this CLIP model")
    add("--fid", metavar="DIR", help="measure the Fréchet distance to the pictures in this folder, fitted to the same size")
    add("--fid-features", default="inception", metavar="F", help="inception (FID), effnet, or a vision model of Transformers (default: inception)")
    add("--inception-weights", metavar="FILE", help="Inception's weights as torch-fidelity publishes them (default: fetched)")
    add("--geneval", nargs=2, metavar=("METADATA", "DIR"), help="write pictures for GenEval's evaluator, and show its scores where it has left them")
    add("--pictures", metavar="DIR", help="write every picture as PNG, a folder per method")
    add_model_options(parser)
    add("--batch-size", type=int, default=8, metavar="N", help="pictures measured together (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress bar, no table")
    parser.set_defaults(run=run)


def _table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """A line per method, a column per measure."""
    lines = []
    for name, row in zip(names, rows, strict=True):
        clip, distance, geneval = row.get("clip_score"), row.get("frechet_distance"), row.get("geneval")
        lines.append(
            [
                name,
                str(row["pictures"]),
                shown_interval(clip),
                "" if distance is None else f"{distance:.2f}",
                "" if geneval is None else f"{geneval['overall']:.3f}",
            ]
        )
    return aligned(["method", "pictures", "CLIP-Score", "Fréchet distance", "GenEval"], lines)


def run(options: argparse.Namespace) -> int:
    """Measure, write, report."""
    from ..bench import Store, labels, write_json
    from ..evaluation import ClipScore, FrechetDistance, Measures, evaluate

    if not any((options.clip, options.fid, options.geneval, options.pictures)):
        raise ValueError("--clip, --fid, --geneval, --pictures: expected at least one of them, got none")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected a whole number >= 1, got {options.batch_size}")
    store = Store.existing(options.folder)
    output = store.folder / "eval.json"
    check_writable(output, "DIR")
    dtype = getattr(torch, store.settings["model"]["dtype"])
    adapter = load_adapter(options.model, adapter=adapter_entries(options), device=options.device, dtype=dtype)
    measures = Measures(
        clip=ClipScore(options.clip, adapter.device) if options.clip else None,
        fid=FrechetDistance(options.fid_features, inception_weights=options.inception_weights, device=adapter.device) if options.fid else None,
        references=Path(options.fid) if options.fid else None,
        geneval=(Path(options.geneval[0]), Path(options.geneval[1])) if options.geneval else None,
        pictures=Path(options.pictures) if options.pictures else None,
        batch_size=options.batch_size,
    )
    rows = evaluate(adapter, store, measures, progress_bar=not options.quiet and sys.stderr.isatty())
    how = {"clip": options.clip, "fid": options.fid, "fid_features": options.fid_features if options.fid else None}
    write_json(output, {"measures": how, "rows": rows})
    if not options.quiet:
        print(f"{_table(rows, labels(rows))}\n\n{output}")
    return 0
