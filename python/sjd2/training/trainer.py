"""Next-clean-token tuning on the stock ``Trainer``: what it needs to be told, and nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from .checkpoints import MarkComplete, ShardedTrainer
from .collator import NoiseCollator, NumberedExample
from .model import NextCleanTokenModel

__all__ = ["build_trainer", "nll_by_level"]


def nll_by_level(prediction: EvalPrediction) -> dict[str, float]:
    """Mean NLL in nats per token: ``clean_nll``, ``noisy_nll`` and ``level_k_nll`` of every level that occurred."""
    sums, counts = (np.asarray(values, dtype=np.float64).sum(0) for values in prediction.predictions)
    figures = {f"level_{level}_nll": float(sums[level] / counts[level]) for level in range(1, len(sums)) if counts[level]}
    if counts[1:].any():
        figures = {"noisy_nll": float(sums[1:].sum() / counts[1:].sum())} | figures
    return {"clean_nll": float(sums[0] / counts[0])} | figures


class _Run(Dataset):
    """The examples of a whole run: ``length`` of them, epoch after epoch, each epoch in an order of its own.

    Which example number i is, whether it loses its caption, and what noise it gets depend on the seed and i alone: a resumed run sees what the
    interrupted one would have seen.
    """

    def __init__(self, dataset: Dataset, length: int, seed: int, drop_captions: float):
        self.dataset, self.length, self.seed, self.drop_captions = dataset, length, seed, drop_captions
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.length

    def _place(self, index: int) -> int:
        epoch, place = divmod(index, len(self.dataset))  # type: ignore[arg-type]
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(random.Random(f"{self.seed}: {epoch}").getrandbits(62))
            self._order = epoch, torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        return int(self._order[1][place])

    def __getitems__(self, indices: Sequence[int]) -> list[NumberedExample]:
        places = [self._place(index) for index in indices]
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(places) if fetch else [self.dataset[place] for place in places]
        return [self._numbered(index, example) for index, example in zip(indices, examples, strict=True)]

    def __getitem__(self, index: int) -> NumberedExample:
        return self.__getitems__([index])[0]

    def _numbered(self, index: int, example: Any) -> NumberedExample:
        own = random.Random(f"{self.seed}/{index}")
        dropped = own.random() < self.drop_captions
        return {"prompt": example["prompt"], "tokens": example["tokens"], "seed": own.getrandbits(62), "dropped": dropped}


class _HeldOut(Dataset):
    """Examples of an evaluation, which have the same noise every time."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> NumberedExample:
        example = self.dataset[index]
        return {"prompt": example["prompt"], "tokens": example["tokens"], "seed": index}


class FixedNoiseTrainer(ShardedTrainer):
    """Evaluates under the same noise every time, and leaves the noise of training as it was."""

    def __init__(self, model: NextCleanTokenModel, args: TrainingArguments, **options: Any):
        super().__init__(model, args, **options)
        self.remove_callback(PrinterCallback)
        self.can_return_loss = True

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
    *,
    drop_captions: float = 0.0,
) -> Trainer:
    """A stock ``Trainer`` for ``model``; ``train(resume_from_checkpoint=…)``, ``evaluate()`` and all arguments are its own.

    A run resumed at a checkpoint goes on as if it had not been interrupted.

    Args:
        model, collator: with the same noise.
        train: a map-style dataset of :class:`Example`; its order is drawn from ``arguments.seed``.
        evaluation: held-out examples, or several sets by name; logged as ``eval_clean_nll``, ``eval_noisy_nll`` and ``eval_level_k_nll``.
        arguments: of the ``Trainer``. Without ``max_steps`` their ``num_train_epochs`` count.
        drop_captions: share of training captions replaced by guidance's unconditional branch of them.

    Raises:
        ValueError: ``drop_captions`` out of its range, an empty dataset, several GPUs in one process, or ``accelerate`` is to shard the model.
    """
    if not 0 <= drop_captions <= 1:
        raise ValueError(f"drop_captions: expected a number in [0, 1], got {drop_captions}")
    if arguments.n_gpu > 1:
        raise ValueError(f"device: expected one GPU per process, got {arguments.n_gpu}; set CUDA_VISIBLE_DEVICES, or start with torchrun")
    examples = len(train)  # type: ignore[arg-type]
    if not examples:
        raise ValueError("train: expected at least one example, got none")
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if arguments.max_steps <= 0:
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * examples / per_step))
    arguments.remove_unused_columns = False
    arguments.label_names = ["tokens"]
    arguments.train_sampling_strategy = "sequential"  # _Run shuffles
    if isinstance(evaluation, dict):
        held_out: Any = {name: _HeldOut(dataset) for name, dataset in evaluation.items()}
    else:
        held_out = None if evaluation is None else _HeldOut(evaluation)
    return FixedNoiseTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=_Run(train, arguments.max_steps * per_step, arguments.seed, drop_captions),
        eval_dataset=held_out,
        compute_metrics=nll_by_level,
        callbacks=[MarkComplete(), *(callbacks or [])],
    )
