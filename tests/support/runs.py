"""Commands of ``sjd2 finetune`` on a model that fits into a test, by one process or by two, and what came of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .tuning import write_images, write_tokens

COMMON = ["--device", "cpu", "--steps", "6", "--windows", "2", "--window", "6", "--levels", "3", "--save-every", "2"]
COMMON += ["--learning-rate", "1e-2", "--eval-every", "1", "--held-out", "0.2"]
FULL = ["--data", "tokens.jsonl", "--batch-size", "4"]
LORA = ["--data", "pictures", "--batch-size", "4", "--lora", "2", "--gradient-checkpointing", "--layout", "segments"]
DRAFTS = ["--own-drafts", "--data", "prompts.txt", "--first", "5", "--renewed", "3"]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(output: str, *arguments: str, model: str = "model") -> list[str]:
    """Of a run of six steps with checkpoints at every second."""
    return ["finetune", "--model", model, *COMMON, *arguments, "-o", output]


def place_in(folder: Path, model: Path) -> Path:
    """``folder`` with a model and data of each kind."""
    shutil.copytree(model, folder / "model")
    write_tokens(folder / "tokens.jsonl", 20)
    write_images(folder / "pictures", 6)
    (folder / "prompts.txt").write_text("a bag\na red coat\na blue boot\n")
    return folder


def assert_same(first: str, second: str, model: str = "model", *, log: float = 1e-3) -> None:
    """Two runs have the same weights and, within ``log``, the same losses: up to rounding."""
    before, one, other = (load_file(Path(name) / "model.safetensors") for name in (model, first, second))
    assert max((one[name] - before[name]).abs().max() for name in one) > 1e-2
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{second}: {name}: {text}")
    logs = [json.loads((Path(name) / "training_log.json").read_text()) for name in (first, second)]
    for part in ("evaluations", "training"):
        for expected, found in zip(logs[0][part], logs[1][part], strict=True):
            del expected["seconds"], found["seconds"]
            assert found == pytest.approx(expected, abs=log), second
