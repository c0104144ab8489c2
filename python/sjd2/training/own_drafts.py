"""A pool of the model's own trajectories that is renewed while the model changes, and the ``Trainer`` that is fed from it."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from ..adapters import Adapter
from ..decoding import Preset, resolve_preset
from .distillation import DraftCollator, DraftDistillation, DraftSettings
from .trajectories import Trajectory, record

__all__ = ["DraftPool", "build_distillation"]

#: No epoch of a pool means anything: training is given by steps.
_ENDLESS = 1 << 40


class DraftPool(Dataset):
    """Trajectories of random prompts at random guidance scales, newest last.

    Args:
        adapter: of the model that is tuned.
        prompts: captions to draw from.
        settings: whose sampling settings are decoded with.
        preset: how.
        guidance: lowest and highest scale.
        size: trajectories that are kept.
        batch_size: images decoded together.
        seed: of prompts, scales and images.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: Sequence[str],
        settings: DraftSettings,
        *,
        preset: Preset | None = None,
        guidance: tuple[float, float] = (1.0, 4.0),
        size: int = 1024,
        batch_size: int = 16,
        seed: int = 0,
    ):
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        if size < 1 or batch_size < 1:
            raise ValueError(f"size, batch_size: expected whole numbers >= 1, got {size} and {batch_size}")
        self.adapter, self.prompts, self.settings, self.size, self.batch_size = adapter, list(prompts), settings, size, batch_size
        self.preset = preset or resolve_preset("mc-sjd", window=max(32, 2 * settings.window))
        self.guidance, self.seed = guidance, seed
        self.trajectories: list[Trajectory] = []
        self.recorded = 0

    def renew(self, count: int) -> float:
        """Record at least ``count`` images with the model as it is; the oldest make room. Returns their tokens per forward."""
        tokens = forwards = 0
        for _ in range(-(-count // self.batch_size)):
            draw = random.Random(f"{self.seed} {self.recorded}")
            prompts = draw.choices(self.prompts, k=self.batch_size)
            scales = [draw.uniform(*self.guidance) for _ in prompts]
            seeds = torch.tensor([draw.getrandbits(62) for _ in prompts])
            settings = self.settings
            new = record(
                self.adapter, prompts, self.preset, scales, seeds, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
            )
            self.trajectories = (self.trajectories + new)[-self.size :]
            self.recorded += len(new)
            tokens += sum(len(one.tokens) for one in new)
            forwards += sum(len(one.committed) for one in new)
        return tokens / forwards

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Trajectory:
        return self.trajectories[index % len(self.trajectories)]


class _Renewal(TrainerCallback):
    """Fills the pool when training begins or goes on, and renews a part of it every few steps."""

    def __init__(self, pool: DraftPool, first: int, every: int, count: int):
        self.pool, self.first, self.every, self.count = pool, first, every, count

    def _renew(self, model: Any, step: int, count: int) -> None:
        model.eval()
        self.pool.recorded = max(self.pool.recorded, step * self.pool.size)  # other prompts after a resume
        found = self.pool.renew(count)
        model.train()
        print(f"step {step}: own drafts at {found:.2f} tokens per forward", file=sys.stderr, flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first trajectories, with the weights as they are: those of a checkpoint when training goes on."""
        self._renew(kwargs["model"], state.global_step, self.first)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Some trajectories of the weights as they have become."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self._renew(kwargs["model"], state.global_step, self.count)


class _Sampler(torch.utils.data.Sampler):
    """Indices without end; the pool maps them to what it holds."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.length):
            yield int(torch.randint(_ENDLESS, (), generator=generator))

    def __len__(self) -> int:
        return self.length


class _DraftTrainer(Trainer):
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        steps = self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _Sampler(steps, self.args.seed)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Under the same windows and noise every time, leaving those of training as they were."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().evaluation_loop(*args, **kwargs)


def _measures(prediction: EvalPrediction) -> dict[str, float]:
    overlap, drift = (float(np.asarray(values).mean()) for values in prediction.predictions)
    return {"overlap": overlap, "drift": drift}


def build_distillation(
    model: DraftDistillation,
    pool: DraftPool,
    arguments: TrainingArguments,
    *,
    first: int = 256,
    every: int = 100,
    renewed: int = 64,
    evaluation: Sequence[Trajectory] | None = None,
    callbacks: list[Any] | None = None,
) -> Trainer:
    """A ``Trainer`` whose data are the model's own drafts: ``first`` images before the first step, ``renewed`` more ``every`` so many steps.

    Args:
        evaluation: trajectories to measure on, recorded before tuning.
    """
    if arguments.max_steps <= 0:
        raise ValueError(f"arguments.max_steps: expected a whole number >= 1, got {arguments.max_steps}")
    arguments.remove_unused_columns = False
    arguments.ignore_data_skip = True
    arguments.label_names = ["tokens"]
    trainer = _DraftTrainer(
        model=model,
        args=arguments,
        data_collator=DraftCollator(pool.adapter.text, pool.settings),
        train_dataset=pool,
        eval_dataset=evaluation,  # type: ignore[arg-type]
        compute_metrics=_measures,
        callbacks=[_Renewal(pool, first, every, renewed), *(callbacks or [])],
    )
    trainer.can_return_loss = True
    return trainer
