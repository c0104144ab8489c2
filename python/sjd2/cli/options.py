"""Options that several subcommands share, and the help text of the methods."""

from __future__ import annotations

import argparse

import torch

from ..attention import ATTENTIONS
from ..cache import CACHES
from ..decoding import INITIALISATIONS, PRESETS

__all__ = ["add_denoising_options", "add_method_options", "add_picture_options", "add_ray_options", "methods_help", "window"]


def window(value: str) -> int | str:
    """A number of drafts, or ``auto``."""
    return value if value == "auto" else int(value)


window.__name__ = "whole number, or auto,"  # what argparse calls a value that is neither


def methods_help() -> str:
    """A line per method."""
    return "\n".join(f"  {preset.name:12} {preset.summary} (window {preset.window})" for preset in PRESETS.values())


def add_method_options(parser: argparse.ArgumentParser, *, attention: str = "auto") -> None:
    """How a method is run, where that is one value for the whole command; ``attention`` is the default."""
    add = parser.add_argument
    add("--initialisation", metavar="I", help=f"of fresh drafts: {', '.join(INITIALISATIONS)} (default: the method's)")
    add("--keep-ratio", type=float, metavar="R", help="threshold of sjd++ and sjd2-relaxed (default: the method's)")
    add("--top-k", type=int, metavar="K", help="0 keeps all ids (default: the model's)")
    add("--top-p", type=float, metavar="P", help="1 keeps all ids (default: the model's)")
    add("--cache", default="ragged", metavar="C", help=f"{' or '.join(CACHES)}: how keys and values are stored (default: %(default)s)")
    names = f"{', '.join(ATTENTIONS)}, or auto: the fastest" if attention == "auto" else ", ".join(ATTENTIONS)
    add("--attention", default=attention, metavar="A", help=f"{names}: who computes a window's attention on a GPU (default: %(default)s)")
    add("--compile", action="store_true", help="let torch.compile compile the model's forward: worth it for many pictures")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """What is drawn besides the prompt."""
    add = parser.add_argument
    add("--negative-prompt", metavar="TEXT", help="what guidance steers away from (default: the model's)")
    add("--height", type=int, metavar="PIXELS", help="of the pictures, where the model makes several sizes")
    add("--width", type=int, metavar="PIXELS", help="of the pictures")


def add_denoising_options(parser: argparse.ArgumentParser) -> None:
    """Noise of the methods that denoise."""
    add = parser.add_argument
    add("--clean", type=_slots, metavar="N_OR_SHARE", help="of sjd2: slots in front without noise, as 24 or as 0.75 of the window")
    add("--levels", type=int, metavar="K", help="of sjd2: noise levels, spaced as Karras et al. do (default: as the model was tuned)")


def add_ray_options(parser: argparse.ArgumentParser) -> None:
    """Where on Ray, and with how many processes of what size; see ``sjd2.cluster.Actors``."""
    add = parser.add_argument
    add(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on Ray: a cluster (auto finds a running one), or without ADDRESS this machine",
    )
    add("--actors", type=int, default=1, metavar="N", help="with --ray: processes with a model each (default: 1)")
    add("--gpus-per-actor", type=float, default=float(torch.cuda.is_available()), metavar="G", help="with --ray; a fraction lets several share one")
    add("--cpus-per-actor", type=float, default=1.0, metavar="C", help="with --ray (default: 1)")


def _slots(text: str) -> int | float:
    """A number of slots, or a share of them."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, or a share such as 0.75, got {text!r}") from None
