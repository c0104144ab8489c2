"""Parses the command line; one module per subcommand does the work."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from .._version import __version__
from . import batch, bench, convert, evaluate, finetune, generate, info, plot, tokens

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sjd2", description="Speculative Jacobi decoding of autoregressive image models.")
    parser.add_argument("--version", action="version", version=f"sjd2-kernels {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (generate, batch, bench, evaluate, plot, finetune, tokens, convert, info):
        command.add_parser(commands)
    return parser


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for an error (one line on stderr), 2 for bad usage, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    # A warning is for the person at the terminal: its text, without the place in our code.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    # RuntimeError: how PyTorch reports, out of memory among others. ImportError: an extra that is not installed.
    except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError, ImportError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
