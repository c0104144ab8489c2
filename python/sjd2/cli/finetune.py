"""``sjd2 finetune``: a model tuned for denoising."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from .model_options import adapter_entries, add_model_options

__all__ = ["add_parser"]

_EPILOG = """data:
  a folder       images and metadata.jsonl, a line {"file_name": "0.png", "text": "a caption"} for each
  a .jsonl file  tokens, a line {"prompt": "a caption", "tokens": [17, 4, ...]} per image
  a .json file   the same in a list, as `sjd2 generate --json` writes it
with --own-drafts:
  a .txt file    a prompt per line
  a .jsonl file  a line {"prompt": "a caption"} each

An interrupted run goes on when the same command is given again. Under torchrun or
accelerate launch it trains on several processes: docs/tuning.md.

example:
  sjd2 finetune --data pictures --steps 2000 --learning-rate 4e-4 -o tuned
  sjd2 finetune --own-drafts --data prompts.txt --steps 1000 --learning-rate 4e-4 -o tuned
  sjd2 generate "a red coat on a yellow background" --model tuned --method sjd2
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "finetune",
        help="tune a model, so that it needs fewer forwards",
        description="Tune a model for denoising (method sjd2) by next-clean-token prediction (2510.08994), on images with captions or on ready "
        "tokens; or on its own drafts, for every method, for which prompts are enough.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR_OR_FILE", help="what to train on, see below")
    add("-o", "--output", required=True, metavar="DIR", help="the folder to make; while training, checkpoints lie in DIR.tuning")
    add("--own-drafts", action="store_true", help="tune on what the model drafts for prompts, with the model as it is as teacher")
    add_model_options(parser)
    add("--eval-data", metavar="DIR_OR_FILE", help="what to evaluate on (default: a held-out share of the data)")
    add("--held-out", type=float, default=0.05, metavar="SHARE", help="share of the data to evaluate on; 0: no evaluation (default: %(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default with --own-drafts: 1000)")
    length.add_argument("--epochs", type=float, metavar="N", help="passes over the data (default: 1)")
    add("--batch-size", type=int, default=8, metavar="N", help="examples per forward, of all processes together (default: %(default)s)")
    add("--gradient-accumulation", type=int, default=1, metavar="N", help="forwards per step; several processes share them (default: %(default)s)")
    add("--learning-rate", type=float, metavar="R", help="highest; 3 %% warm-up, then a cosine (default: 2e-5, with LoRA 2e-4)")
    add("--seed", type=int, default=0, metavar="N", help="of order, noise and captions dropped (default: %(default)s)")
    add("--drop-captions", type=float, metavar="SHARE", help="share of captions left out, for guidance (default: 0.1)")
    add("--lora", type=int, metavar="RANK", help="train low-rank adapters, merged into the weights at the end (default: all parameters)")
    add("--gradient-checkpointing", action="store_true", help="less memory, about a third more time")
    add("--bf16", action="store_true", help="multiply in bfloat16")
    add("--height", type=int, metavar="PIXELS", help="of the images, where the model makes several sizes (default: the model's)")
    add("--width", type=int, metavar="PIXELS", help="likewise")
    add("--levels", type=int, default=6, metavar="K", help="noise levels, spaced as Karras et al. do (default: %(default)s)")
    add("--layout", default="windows", metavar="L", help="windows beside a clean sequence, or segments in it as published (default: %(default)s)")
    add("--windows", type=int, default=4, metavar="M", help="of windows: how many beside a sequence (default: %(default)s)")
    add("--window", type=int, default=32, metavar="S", help="of windows: slots of each (default: %(default)s)")
    add("--segment", type=int, nargs=2, default=(3, 6), metavar=("LOW", "HIGH"), help="slots of one noise level (default: 3 6)")
    add("--no-timesteps", dest="timesteps", action="store_false", help="no timestep tokens")
    add("--no-normalise", dest="normalise", action="store_false", help="noise in the plain embedding space, in which denoising fails (2510.08994)")
    drafts = parser.add_argument_group("with --own-drafts")
    drafts.add_argument("--anchor", type=float, metavar="A", help="weight of what the law of AR sampling drifts by (default: 6)")
    drafts.add_argument("--guidance", type=float, nargs=2, metavar=("LOW", "HIGH"), help="scales of the images (default: 1 to twice the model's)")
    drafts.add_argument("--pool", type=int, metavar="N", help="images whose drafts are kept (default: 1024)")
    drafts.add_argument("--first", type=int, metavar="N", help="images recorded before the first step (default: 256)")
    drafts.add_argument("--renewed", type=int, metavar="N", help="images recorded anew ... (default: 64)")
    drafts.add_argument("--every", type=int, metavar="N", help="... after every so many steps (default: 100)")
    add("--fsdp", action="store_true", help="several processes share the weights, too (FSDP); or accelerate launch --use_fsdp")
    add("--save-every", type=int, default=200, metavar="N", help="steps between checkpoints (default: %(default)s)")
    add("--eval-every", type=int, metavar="N", help="steps between evaluations (default: a tenth of all)")
    add("--quiet", action="store_true", help="no report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Tune, report."""
    # Here, because the trainer takes seconds to import.
    from ..denoising import NoiseLevels
    from ..training import DraftSettings, FinetuneSettings, TuningNoise, finetune

    noise = TuningNoise(
        levels=NoiseLevels.karras(options.levels),
        layout=options.layout,
        windows=options.windows,
        window=options.window,
        segment=tuple(options.segment),
        timesteps=options.timesteps,
        normalise=options.normalise,
    )
    of_drafts: dict[str, Any] = {name: getattr(options, name) for name in ("anchor", "guidance", "pool", "first", "renewed", "every")}
    of_data = {name: getattr(options, name) for name in ("epochs", "drop_captions")}
    for name, value in (of_data if options.own_drafts else of_drafts).items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: means nothing {'with' if options.own_drafts else 'without'} --own-drafts")
    if options.guidance is not None:
        of_drafts["guidance"] = tuple(options.guidance)
    drafts = DraftSettings(**{name: value for name, value in of_drafts.items() if value is not None})
    settings = FinetuneSettings(
        noise=noise,
        drafts=drafts if options.own_drafts else None,
        steps=options.steps,
        batch_size=options.batch_size,
        gradient_accumulation=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        seed=options.seed,
        held_out=options.held_out,
        lora=options.lora,
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=options.bf16,
        height=options.height,
        width=options.width,
        save_every=options.save_every,
        eval_every=options.eval_every,
        **{name: value for name, value in of_data.items() if value is not None},
    )
    report = (lambda line: None) if options.quiet else functools.partial(print, flush=True)
    finetune(
        options.data,
        options.output,
        settings,
        model=options.model,
        adapter=adapter_entries(options),
        eval_data=options.eval_data,
        device=options.device,
        fsdp=options.fsdp,
        report=report,
    )
    return 0
