"""Checkpoints: the same files whether the model was in one process or in shares, and only those that were written to their end count."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from .sharding import is_sharded, share_like, whole

__all__ = ["MarkComplete", "ShardedTrainer", "last_checkpoint"]

_COMPLETE = "complete.json"


class MarkComplete(TrainerCallback):
    """Tells a checkpoint that was written to its end from one that a kill cut short."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The last thing that is written."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        (folder / _COMPLETE).write_text(json.dumps({"step": state.global_step}) + "\n")


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in ``folder`` that was written to its end, if there is one; removes those that were not."""
    found = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    while found is not None and not (Path(found) / _COMPLETE).is_file():
        shutil.rmtree(found)
        found = get_last_checkpoint(str(folder))
    return found


class ShardedTrainer(Trainer):
    """Takes a model that is in shares as it is, and writes its checkpoints as those of a whole one, which any number of processes read.

    Raises:
        ValueError: ``accelerate`` is to shard the model.
    """

    # Where anything of it is saved or loaded, a trainer has made them.
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR

    def __init__(self, model: torch.nn.Module, args: TrainingArguments, **options: Any):
        if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError("arguments.fsdp: expected none, and no --use_fsdp of the launcher: the model shards itself, by its method shard")
        super().__init__(model, args, **options)
        self.sharded = is_sharded(model)
        if self.sharded:
            prepare = self.accelerator.prepare_model

            def prepare_as_it_is(model: torch.nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False) -> torch.nn.Module:
                """Autocast and no more: accelerate would put DDP around the model."""
                return prepare(model, device_placement=False, evaluation_mode=True)

            self.accelerator.prepare_model = prepare_as_it_is  # type: ignore[method-assign]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, gathered by all processes and written by one."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = whole(self.model.state_dict(), keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole(self.optimizer.state_dict(), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Moments are read as they are needed and never lie whole on a device, which the stock Trainer would have them do.
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", mmap=True, weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for place, own in state["state"].items():
            for name, value in own.items():
                own[name] = share_like(value, parameters[place]).clone()  # the file will go
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
