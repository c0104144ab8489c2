"""A run of a recipe: the command it was begun with, what its trainer is told, what it reports."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from .processes import share_of_batch
from .save import LOG
from .settings import FinetuneSettings

__all__ = ["Report", "check_same", "described", "is_finished", "training_arguments"]

#: Share of the steps in which the learning rate rises; after them it falls as a cosine.
_WARMUP = 0.03


def described(data: Any) -> str | None:
    """Data or a model, for the record."""
    if data is None or isinstance(data, (str, Path)):
        return None if data is None else str(data)
    return f"{type(data).__qualname__} of {len(data)}"


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def check_same(begun: dict[str, Any], command: dict[str, Any], place: Path) -> None:
    """Raise unless ``command`` is the one that ``place`` was begun with; what is not known of it yet (the data's digest) is not compared."""
    before, now = _flat({name: value for name, value in begun.items() if name in command}), _flat(command)
    others = [f"{name} = {now.get(name)!r} (was {before.get(name)!r})" for name in {**before, **now} if before.get(name) != now.get(name)]
    if others:
        raise ValueError(f"output: {place} was begun by another command, this one has {', '.join(others)}; give the same command or another output")


def is_finished(output: Path, command: dict[str, Any]) -> bool:
    """Whether ``output`` is there and made by ``command``; raises if it is anything else than absent or empty."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    log = json.loads((output / LOG).read_text()) if (output / LOG).is_file() else None
    if not isinstance(log, dict) or "command" not in log:
        raise OSError(f"output: expected a folder that is not there yet, {output} holds other files")
    check_same(log["command"], command, output)
    return True


class Report(TrainerCallback):
    """Prints what the ``Trainer`` logs, adds the seconds of training to it, and stops a run whose loss is no number."""

    def __init__(self, report: Callable[[str], None]):
        self.report, self.before, self.started = report, 0.0, time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The seconds of the run so far."""
        self.before = max((row.get("seconds", 0.0) for row in state.log_history), default=0.0)
        self.started = time.monotonic()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """A line on the terminal."""
        seconds = round(self.before + time.monotonic() - self.started, 1)
        row = state.log_history[-1]
        row["seconds"] = seconds
        place = f"step {state.global_step} of {state.max_steps}"
        if "eval_clean_nll" in row:
            levels = [f"{value:.3f}" for name, value in row.items() if name.startswith("eval_level_")]
            noisy = f", noisy {row['eval_noisy_nll']:.3f} (by level: {' '.join(levels)})" if levels else ""
            self.report(f"{place}: held out: NLL {row['eval_clean_nll']:.3f}{noisy}")
        elif "eval_overlap" in row:
            self.report(f"{place}: held out: overlap {row['eval_overlap']:.3f}, drift {row['eval_drift']:.4f}")
        elif "loss" in row:
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"loss: expected a finite number, got {row['loss']} by step {state.global_step}; try a lower learning rate")
            self.report(f"{place}: loss {row['loss']:.3f}, learning rate {row['learning_rate']:.2g}, {seconds:.0f} s")


class _Arguments(TrainingArguments):
    """Several processes on a CPU are told that they compute on ``cpu:0`` and ``cpu:1``, and older Transformers hand that to ``torch.load``."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def training_arguments(
    settings: FinetuneSettings, steps: int, work: Path, device: torch.device, evaluates: bool, resumes: bool, processes: int
) -> TrainingArguments:
    """What the ``Trainer`` of each process is told."""
    batch_size, accumulation = share_of_batch(settings.batch_size, settings.gradient_accumulation, processes)
    eval_every = settings.eval_every or max(1, steps // 10)
    return _Arguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate or (2e-4 if settings.lora else 2e-5),
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(_WARMUP * steps),
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_every,
        eval_on_start=evaluates and not resumes,
        logging_steps=min(50, eval_every),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
    )
