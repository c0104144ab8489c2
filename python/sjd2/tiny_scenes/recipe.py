"""A training loop that survives being killed: atomic checkpoints, a log of JSON lines, batches addressed by their number."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Schedule", "autocast", "run_stage"]


@dataclass(frozen=True)
class Schedule:
    """``steps`` of AdamW on batches of ``batch_size``: linear warm-up to ``learning_rate``, then cosine decay to zero."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.05

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def autocast(device: torch.device) -> Any:
    """bfloat16 on every device that PyTorch multiplies it on, otherwise nothing."""
    if device.type == "cpu" and not torch.backends.mkldnn.is_available():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _optimizer(module: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95), fused=True)


def _save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves either the old one or the new one."""
    scratch = path.with_suffix(".partial")
    torch.save(state, scratch)
    os.replace(scratch, path)


def _forget_after(log: Path, step: int) -> None:
    """Drop log rows past the checkpoint, and a line that a kill cut short: the resumed run writes them again."""
    kept = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    scratch = log.with_suffix(".partial")
    scratch.write_text("".join(kept))
    os.replace(scratch, log)


def run_stage(
    name: str,
    module: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    evaluate: Callable[[], dict[str, float]],
    schedule: Schedule,
    folder: Path,
    *,
    checkpoint_seconds: float = 120.0,
    evaluations: int = 20,
) -> dict[str, float]:
    """Train ``module`` to the end of ``schedule``, continuing from ``folder/name.pt`` if it is there.

    Args:
        loss_of: the loss of batch number ``step``; it must depend on the step alone, so that a resumed run sees the
            batches that the killed one would have seen.
        evaluate: figures to log, ``evaluations`` times over the schedule and at the end.
        folder: receives ``name.pt`` (checkpoint) and ``name.jsonl`` (log).

    Returns:
        The last evaluation, with ``seconds`` of training over all resumptions and their number, ``resumed``.

    Raises:
        ValueError: the checkpoint belongs to another schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    optimizer = _optimizer(module, schedule)
    step, seconds, resumed = 0, 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
        if state["schedule"] != asdict(schedule):
            raise ValueError(f"{checkpoint}: expected the schedule {asdict(schedule)}, got {state['schedule']}; use another --out")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if state["step"] == schedule.steps:
            return json.loads(log.read_text().splitlines()[-1])
        step, seconds, resumed = state["step"], state["seconds"], state["resumed"] + 1
        _forget_after(log, step)
        print(f"{name}: resumed at step {step} of {schedule.steps}", flush=True)

    def save() -> None:
        _save(
            checkpoint,
            {
                "schedule": asdict(schedule),
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds,
                "resumed": resumed,
            },
        )

    def record(figures: dict[str, float]) -> dict[str, float]:
        row = {"step": step, "scenes": step * schedule.batch_size, "seconds": round(seconds, 1), "resumed": resumed, **figures}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: " + " ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        return row

    every = max(1, schedule.steps // evaluations)
    started, saved, total, count = time.monotonic(), time.monotonic(), 0.0, 0
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        module.train()
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step, total, count = step + 1, total + loss.item(), count + 1
        now = time.monotonic()
        seconds, started = seconds + now - started, now
        if step % every == 0 and step < schedule.steps:
            module.eval()
            record({"train_loss": total / count, **evaluate()})
            total, count, started = 0.0, 0, time.monotonic()
        if now - saved > checkpoint_seconds:
            save()
            saved = time.monotonic()
    module.eval()
    row = record({"train_loss": total / count, **evaluate()})
    save()
    return row
