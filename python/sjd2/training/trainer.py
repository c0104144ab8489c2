"""Next-clean-token tuning on the stock ``Trainer``: what it needs to be told, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from .collator import NoiseCollator
from .model import NextCleanTokenModel

__all__ = ["build_trainer", "nll_by_level"]


def nll_by_level(prediction: EvalPrediction) -> dict[str, float]:
    """Mean NLL in nats per token: ``clean_nll``, ``noisy_nll`` and ``level_k_nll`` of every level that occurred."""
    sums, counts = (np.asarray(values).sum(0) for values in prediction.predictions)
    figures = {"clean_nll": float(sums[0] / max(counts[0], 1)), "noisy_nll": float(sums[1:].sum() / max(counts[1:].sum(), 1))}
    return figures | {f"level_{level}_nll": float(sums[level] / counts[level]) for level in range(1, len(sums)) if counts[level]}


class _FixedNoise(Trainer):
    """Evaluates under the same noise every time, and leaves the noise of training as it was."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().evaluation_loop(*args, **kwargs)


def build_trainer(
    model: NextCleanTokenModel,
    collator: NoiseCollator,
    train: Dataset,
    evaluation: Dataset | dict[str, Dataset] | None,
    arguments: TrainingArguments,
    callbacks: list[Any] | None = None,
) -> Trainer:
    """A ``Trainer`` for ``model``; ``train(resume_from_checkpoint=…)``, ``evaluate()`` and all arguments are its own."""
    arguments.remove_unused_columns = False
    arguments.label_names = ["tokens"]
    trainer = _FixedNoise(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        compute_metrics=nll_by_level,
        callbacks=callbacks,
    )
    trainer.can_return_loss = True
    return trainer


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in ``folder``, if there is one."""
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
