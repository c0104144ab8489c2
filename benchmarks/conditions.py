"""What a figure was measured on; stored beside every result."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

from sjd2.bench import device_name
from sjd2.cli.info import collect


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with local changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def conditions(on: str) -> dict[str, str]:
    """Date, commit, machine and versions of a measurement on device ``on``."""
    facts = collect()
    del facts["installed at"]  # says where, not under which conditions
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit(), "device": device_name(torch.device(on)), **facts}


def _digest(files: Iterable[Path]) -> str:
    """Of names and contents, wherever the files lie."""
    parts = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def weights_digest(folder: Path) -> str:
    """Tells the models of two folders apart: weights, configuration and tokenizer, but not the log of their training."""
    return _digest(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json") and path.name != "training_log.json")
