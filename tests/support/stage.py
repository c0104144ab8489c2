"""A training stage of a second or so."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from sjd2.tiny_scenes.recipe import Schedule, run_stage


def stage(folder: Path, pause: float = 0.0, steps: int = 40) -> list[float]:
    """Fit a line, with ``pause`` seconds before every step; returns its parameters."""
    torch.manual_seed(0)
    module = nn.Linear(4, 1)

    def loss_of(step: int) -> torch.Tensor:
        time.sleep(pause)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    schedule = Schedule(steps=steps, batch_size=8, learning_rate=0.1, warmup=5)
    run_stage("line", module, loss_of, lambda: {"bias": module.bias.item()}, schedule, folder, checkpoint_seconds=0.0)
    return [*module.weight.flatten().tolist(), module.bias.item()]
