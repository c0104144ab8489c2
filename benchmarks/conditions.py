"""What a figure was measured on; stored beside every result."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from sjd2.cli.info import collect


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with local changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def conditions(on: str) -> dict[str, str]:
    """Date, commit, machine and versions of a measurement on device ``on``."""
    device = torch.cuda.get_device_name(on) if on.startswith("cuda") else f"{_processor()}, {torch.get_num_threads()} threads"
    facts = collect()
    del facts["installed at"]  # says where, not under which conditions
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit(), "device": device, **facts}
