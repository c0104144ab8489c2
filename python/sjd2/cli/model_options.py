"""Options that say which model, and what its adapter has to be told: the same for every command that loads one."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["adapter_entries", "add_model_options"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--device``, ``--adapter`` and ``--adapter-option``."""
    add = parser.add_argument
    add("--model", metavar="NAME_OR_PATH", help="a folder or hub name (default: the model that ships with the package)")
    add("--device", metavar="D", help="cpu, cuda … (default: the GPU if there is one)")
    add("--adapter", metavar="NAME", help="of the model's family, where its configuration does not show it: anole, lumina_mgpt, generic …")
    add(
        "--adapter-option", action="append", default=[], metavar="NAME=VALUE",
        help="of that family's adapter, such as target_size=512; several times for several. Lists as JSON: 'grid=[24,24]'",
    )  # fmt: skip


def _value(text: str) -> Any:
    """A number, list, … where it is JSON; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def adapter_entries(options: argparse.Namespace) -> dict[str, Any] | None:
    """What ``--adapter`` and ``--adapter-option`` say, as ``load_adapter`` takes it.

    Raises:
        ValueError: no NAME=VALUE, or a name that is given twice.
    """
    entries: dict[str, Any] = {} if options.adapter is None else {"adapter": options.adapter}
    for option in options.adapter_option:
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise ValueError(f"--adapter-option: expected NAME=VALUE, got {option!r}")
        if name in entries:
            raise ValueError(f"--adapter-option: expected every name once, got {name} twice")
        entries[name] = _value(value)
    return entries or None
