"""The whole recipe: data, model, training that survives being killed, a folder that the pipeline loads.

While it runs, its checkpoints lie in ``OUTPUT.tuning`` beside the folder to be made; that folder appears when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from ..adapters import Adapter, load_adapter
from ..files import check_writable, write_atomically
from .collator import NoiseCollator
from .data import TokenExamples, read_examples
from .lora import add_lora, merge_lora
from .model import NextCleanTokenModel
from .plan import TuningNoise
from .save import LOG, save_tuned
from .trainer import build_trainer, last_checkpoint

__all__ = ["FinetuneSettings", "finetune"]

#: Share of the steps in which the learning rate rises; after them it falls as a cosine.
_WARMUP = 0.03

#: In the folder of a run: what it was begun with.
_COMMAND = "command.json"


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is tuned.

    Attributes:
        noise: where and how noise is added.
        steps: of the optimiser; default: as many as ``epochs`` over the data take.
        epochs: passes over the data.
        batch_size: examples per forward.
        gradient_accumulation: forwards per step.
        learning_rate: its highest; default 2e-5 (2510.08994), with LoRA 2e-4. Small models take far more.
        seed: of order, noise, dropped captions and LoRA's first weights.
        drop_captions: share of captions replaced by an empty one, which guidance needs.
        held_out: share of the data that is not trained on and evaluated instead, unless there is data for that; 0 for no evaluation.
        lora: rank of LoRA; ``None`` trains all parameters.
        gradient_checkpointing: compute activations again instead of keeping them: less memory, about a third more time.
        bf16: multiply in bfloat16; with LoRA, frozen weights that were stored in bfloat16 stay in it.
        save_every, eval_every: steps between checkpoints, and between evaluations (default: a tenth of all).

    Raises:
        ValueError: a number out of its range.
    """

    noise: TuningNoise = field(default_factory=TuningNoise)
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    seed: int = 0
    drop_captions: float = 0.1
    held_out: float = 0.05
    lora: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    save_every: int = 200
    eval_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "lora", "save_every", "eval_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        for name, value in (("epochs", self.epochs), ("learning_rate", self.learning_rate)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a number > 0, got {value!r}")
        if not 0 <= self.drop_captions <= 1:
            raise ValueError(f"drop_captions: expected a number in [0, 1], got {self.drop_captions!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: expected a share in [0, 1), got {self.held_out!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed: expected a whole number >= 0, got {self.seed!r}")

    def steps_for(self, examples: int) -> int:
        """Optimiser steps of a run over this many examples."""
        return self.steps or max(1, math.ceil(self.epochs * examples / (self.batch_size * self.gradient_accumulation)))


def _described(data: str | Path | Dataset | None) -> str | None:
    if data is None or isinstance(data, (str, Path)):
        return None if data is None else str(data)
    return f"{type(data).__qualname__} of {len(data)}"  # type: ignore[arg-type]


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _check_same(begun: dict[str, Any], command: dict[str, Any], place: Path) -> None:
    """Raise unless ``command`` is the one that ``place`` was begun with; what is not known of it yet (the data's digest) is not compared."""
    before, now = _flat({name: value for name, value in begun.items() if name in command}), _flat(command)
    others = [f"{name} = {now.get(name)!r} (was {before.get(name)!r})" for name in {**before, **now} if before.get(name) != now.get(name)]
    if others:
        raise ValueError(f"output: {place} was begun by another command, this one has {', '.join(others)}; give the same command or another output")


def _is_finished(output: Path, command: dict[str, Any]) -> bool:
    """Whether ``output`` is there and made by ``command``; raises if it is anything else than absent or empty."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    log = json.loads((output / LOG).read_text()) if (output / LOG).is_file() else None
    if not isinstance(log, dict) or "command" not in log:
        raise OSError(f"output: expected a folder that is not there yet, {output} holds other files")
    _check_same(log["command"], command, output)
    return True


class _Report(TrainerCallback):
    """Prints what the ``Trainer`` logs, adds the seconds of training to it, and stops a run whose loss is no number."""

    def __init__(self, report: Callable[[str], None]):
        self.report, self.before, self.started = report, 0.0, time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = max((row.get("seconds", 0.0) for row in state.log_history), default=0.0)
        self.started = time.monotonic()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        seconds = round(self.before + time.monotonic() - self.started, 1)
        row = state.log_history[-1]
        row["seconds"] = seconds
        place = f"step {state.global_step} of {state.max_steps}"
        if "eval_clean_nll" in row:
            levels = [f"{value:.3f}" for name, value in row.items() if name.startswith("eval_level_")]
            noisy = f", noisy {row['eval_noisy_nll']:.3f} (by level: {' '.join(levels)})" if levels else ""
            self.report(f"{place}: held out: NLL {row['eval_clean_nll']:.3f}{noisy}")
        elif "loss" in row:
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"loss: expected a finite number, got {row['loss']} by step {state.global_step}; try a lower learning rate")
            self.report(f"{place}: loss {row['loss']:.3f}, learning rate {row['learning_rate']:.2g}, {seconds:.0f} s")


def _arguments(settings: FinetuneSettings, steps: int, work: Path, adapter: Adapter, evaluates: bool, resumes: bool) -> TrainingArguments:
    eval_every = settings.eval_every or max(1, steps // 10)
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate or (2e-4 if settings.lora else 2e-5),
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(_WARMUP * steps),
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=adapter.device.type == "cpu",
        dataloader_pin_memory=adapter.device.type != "cpu",
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


def _load(model: str | Path | None, device: torch.device | str | None, settings: FinetuneSettings) -> Adapter:
    """The model, ready to be trained."""
    stored = settings.lora is not None and settings.bf16
    adapter = load_adapter(model, device=device, dtype="auto" if stored else torch.float32)
    if adapter.model.dtype not in (torch.float32, torch.bfloat16):
        torch.nn.Module.to(adapter.model, torch.float32)  # float16 would lose bits in bfloat16, and overflow in gradients
    if adapter.device.index not in (None, 0):
        raise ValueError(f"device: expected cpu or cuda, got {device}; choose a GPU by CUDA_VISIBLE_DEVICES")
    torch.manual_seed(settings.seed)
    adapter.model.requires_grad_(True)
    if settings.lora is not None:
        add_lora(adapter.model, settings.lora)
    return adapter


def _length(data: Dataset | None) -> int:
    return 0 if data is None else len(data)  # type: ignore[arg-type]


def _read(data: str | Path | Dataset, adapter: Adapter, keep: Path, report: Callable[[str], None]) -> Dataset:
    """Examples as they are, or from disk; images are encoded once."""
    if not isinstance(data, (str, Path)):
        return data

    def progress(done: int, total: int) -> None:
        if done == total or done % 1024 == 0:
            report(f"{data}: {done:,} of {total:,} images encoded")

    return read_examples(data, adapter, keep=keep, progress=progress)


def _train(
    adapter: Adapter, settings: FinetuneSettings, train: Dataset, held_out: Dataset | None, work: Path, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train, from the last checkpoint in ``work`` if there is one; returns what the ``Trainer`` logged."""
    steps, checkpoint = settings.steps_for(_length(train)), last_checkpoint(work)
    tuned, collator = NextCleanTokenModel(adapter, settings.noise), NoiseCollator(adapter, settings.noise)
    if settings.gradient_checkpointing:
        tuned.activation_checkpointing_enable()
    arguments = _arguments(settings, steps, work, adapter, held_out is not None, checkpoint is not None)
    trainer = build_trainer(tuned, collator, train, held_out, arguments, [_Report(report)], drop_captions=settings.drop_captions)
    trained = sum(parameter.numel() for parameter in tuned.state_dict().values())
    per_step = settings.batch_size * settings.gradient_accumulation
    report(f"{trained:,} parameters, {_length(train):,} examples, {_length(held_out):,} held out, {steps:,} steps of {per_step}")
    if checkpoint is not None:
        report(f"resumed from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if held_out is not None and not any("eval_clean_nll" in row and row["step"] == steps for row in trainer.state.log_history):
        trainer.evaluate()
    return trainer.state.log_history


def _figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written beside the weights, of what the ``Trainer`` logged."""
    evaluations = [row for row in history if "eval_clean_nll" in row]
    kept = ("step", "seconds", "eval_clean_nll", "eval_noisy_nll", "eval_level_")
    return {
        "seconds": max((row.get("seconds", 0.0) for row in history), default=0.0),
        "evaluations": [{name.removeprefix("eval_"): value for name, value in row.items() if name.startswith(kept)} for row in evaluations],
        "training": [{name: row[name] for name in ("step", "loss", "learning_rate", "seconds")} for row in history if "loss" in row],
    }


def finetune(
    data: str | Path | Dataset,
    output: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    model: str | Path | None = None,
    eval_data: str | Path | Dataset | None = None,
    device: torch.device | str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Tune a model for denoising, and write it as a folder that ``TextToImagePipeline.from_pretrained`` loads.

    Interrupted, it goes on from its last checkpoint when it is called again with the same arguments. What it logs is in the folder's
    ``training_log.json``: loss, and before, during and after training the held-out NLL of clean and noisy inputs.

    Args:
        data: what :func:`read_examples` reads, or a map-style dataset of :class:`Example`.
        output: the folder to be made.
        settings: see :class:`FinetuneSettings`.
        model: a folder or a hub name; ``None`` for the embedded model.
        eval_data: like ``data``, to be evaluated in place of a held-out share.
        device: default: the GPU if there is one.
        report: called with a line of text now and then.

    Raises:
        FileNotFoundError, OSError: no such data or model, a folder that cannot be written or holds other files.
        ValueError: bad settings or data, a model that no adapter exists for, or an ``output`` that another command began.
        FloatingPointError: the loss was not finite.
        ImportError: ``accelerate``, or for LoRA ``peft``, is not installed.
    """
    settings = settings or FinetuneSettings()
    output = Path(output)
    work = output.with_name(f"{output.name}.tuning")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("finetune: expected one process; on several GPUs use sjd2.training.build_trainer in a script of your own")
    described = {"data": _described(data), "eval_data": _described(eval_data), "model": _described(model)}
    command = json.loads(json.dumps({**described, **asdict(settings)}))  # as it is read back
    if _is_finished(output, command):
        report(f"{output} is finished")
        return output
    check_writable(work / _COMMAND, "output")
    begun = json.loads((work / _COMMAND).read_text()) if (work / _COMMAND).is_file() else None
    if begun is not None:
        _check_same(begun, command, work)

    adapter = _load(model, device, settings)
    train = _read(data, adapter, work / "tokens.npz", report)
    held_out = None if eval_data is None else _read(eval_data, adapter, work / "eval_tokens.npz", report)
    command["digest"] = [part.digest() if isinstance(part, TokenExamples) else None for part in (train, held_out)]
    if begun is not None:
        _check_same(begun, command, work)
    if held_out is None and settings.held_out:
        if not isinstance(train, TokenExamples):
            raise ValueError("held_out: a dataset of your own is not split; give eval_data, or held_out=0")
        train, held_out = train.split(settings.held_out, settings.seed)
    write_atomically(work / _COMMAND, lambda scratch: scratch.write_text(json.dumps(command, indent=1) + "\n"))
    history = _train(adapter, settings, train, held_out, work, report)
    if settings.lora is not None:
        merge_lora(adapter.model)
    sizes = {"examples": _length(train), "held_out": _length(held_out)}
    save_tuned(adapter, settings.noise, output, {"command": command, **sizes, **_figures(history)})
    shutil.rmtree(work)
    report(f"{output}: done")
    return output
