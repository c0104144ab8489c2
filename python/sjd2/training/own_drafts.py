"""A pool of the model's own trajectories that is renewed while the model changes, and the ``Trainer`` that is fed from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from ..adapters import Adapter
from ..decoding import Preset, resolve_preset
from .checkpoints import MarkComplete
from .distillation import DraftCollator, DraftDistillation, DraftSettings
from .trainer import FixedNoiseTrainer
from .trajectories import Trajectory, record

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["DraftPool", "build_draft_trainer"]

#: Indices that a pool is asked for; it maps them to what it holds at the time.
_INDICES = 1 << 40

#: Images decoded together, at most.
_BATCH = 16


class DraftPool(Dataset):
    """Trajectories of random prompts at random guidance scales, the newest last.

    Args:
        adapter: of the model that is tuned.
        prompts: captions to draw from.
        settings: scales and size.
        window: slots that are recorded.
        seed: of prompts, scales and images.
        preset: how images are decoded; default ``mc-sjd``.
        processes: that record a share of the images each and hold all of them; default: this one is alone.

    Attributes:
        trajectories: what it holds.
        recorded: images recorded so far.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: Sequence[str],
        settings: DraftSettings,
        *,
        window: int = 48,
        seed: int = 0,
        preset: Preset | None = None,
        processes: PartialState | None = None,
    ):
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        self.adapter, self.prompts, self.settings, self.seed = adapter, list(prompts), settings, seed
        self.processes = processes
        self.preset = preset or resolve_preset("mc-sjd", window=window)
        self.guidance = settings.guidance or (1.0, max(1.0, 2 * adapter.defaults.guidance_scale))
        self.trajectories: list[Trajectory] = []
        self.recorded = 0

    def renew(self, count: int) -> float:
        """Record ``count`` images with the model as it is; the oldest make room. Returns their tokens per forward."""
        defaults = self.adapter.defaults
        sampling = {"temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p}
        drawn: list[tuple[str, float, int]] = []
        for first in range(0, count, _BATCH):
            own = random.Random(f"{self.seed}: {self.recorded + first}")
            prompts = own.choices(self.prompts, k=min(_BATCH, count - first))
            scales = [own.uniform(*self.guidance) for _ in prompts]
            drawn += [(prompt, scale, own.getrandbits(62)) for prompt, scale in zip(prompts, scales, strict=True)]
        index, shares = (0, 1) if self.processes is None else (self.processes.process_index, self.processes.num_processes)
        mine, recorded = drawn[index::shares], []
        for first in range(0, len(mine), _BATCH):
            prompts, scales, seeds = (list(column) for column in zip(*mine[first : first + _BATCH], strict=True))
            recorded += record(self.adapter, prompts, self.preset, scales, torch.tensor(seeds), **sampling)
        new = self._from_all(recorded, shares)
        self.trajectories = (self.trajectories + new)[-self.settings.pool :]
        self.recorded += count
        return sum(len(one.tokens) for one in new) / sum(len(one.committed) for one in new)

    @staticmethod
    def _from_all(recorded: list[Trajectory], shares: int) -> list[Trajectory]:
        """What all processes recorded, in the order in which it was dealt out."""
        if shares == 1:
            return recorded
        from accelerate.utils import gather_object

        parts = gather_object([recorded])
        return [parts[place % shares][place // shares] for place in range(sum(len(part) for part in parts))]

    def __len__(self) -> int:
        return _INDICES

    def __getitem__(self, index: int) -> Trajectory:
        return replace(self.trajectories[index % len(self.trajectories)], seed=index)


class _Renewal(TrainerCallback):
    """Fills the pool when training begins or goes on, and renews a part of it every few steps."""

    def __init__(self, pool: DraftPool, report: Callable[[str], None]):
        self.pool, self.report = pool, report

    def _renew(self, model: Any, state: Any, count: int) -> None:
        model.eval()
        found = model.with_weights(lambda: self.pool.renew(count))
        model.train()
        self.report(f"step {state.global_step} of {state.max_steps}: own drafts recorded, {found:.2f} tokens per forward")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With the weights as they are: those of a checkpoint when training goes on, and then other prompts than those of the beginning."""
        settings = self.pool.settings
        if state.global_step:
            self.pool.recorded = settings.first + state.global_step // settings.every * settings.renewed
        self._renew(kwargs["model"], state, self.pool.settings.first)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With the weights as they have become."""
        if state.global_step % self.pool.settings.every == 0 and state.global_step < state.max_steps:
            self._renew(kwargs["model"], state, self.pool.settings.renewed)


class _Random(Sampler):
    """As many random indices as the run has examples."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.length):
            yield int(torch.randint(_INDICES, (), generator=generator))

    def __len__(self) -> int:
        return self.length


class _DraftTrainer(FixedNoiseTrainer):
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _Random(self.args.max_steps * per_step, self.args.seed)


def _measures(prediction: EvalPrediction) -> dict[str, float]:
    overlap, drift = (np.asarray(values) for values in prediction.predictions)
    return {"overlap": float(np.nanmean(overlap)), "drift": float(drift.mean())}


def build_draft_trainer(
    model: DraftDistillation,
    pool: DraftPool,
    evaluation: Sequence[Trajectory] | None,
    arguments: TrainingArguments,
    callbacks: list[Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Trainer:
    """A ``Trainer`` whose data are the model's own drafts, recorded anew as it changes.

    A run resumed at a checkpoint fills its pool with drafts of the checkpoint's weights, so it is not step for step what the interrupted one
    would have been.

    Args:
        model, pool: of the same adapter.
        evaluation: trajectories to measure on, better recorded before tuning; logged as ``eval_overlap`` and ``eval_drift``.
        arguments: of the ``Trainer``; ``max_steps`` has to be given.
        report: called with a line whenever drafts were recorded.

    Raises:
        ValueError: no ``max_steps``, workers that load data, several GPUs in one process, or several processes of which the pool does not know:
            each would record all drafts.
    """
    if arguments.max_steps <= 0:
        raise ValueError(f"arguments.max_steps: expected a whole number >= 1, got {arguments.max_steps}")
    if arguments.n_gpu > 1:
        raise ValueError(f"device: expected one GPU per process, got {arguments.n_gpu}; set CUDA_VISIBLE_DEVICES, or start with torchrun")
    known = 1 if pool.processes is None else pool.processes.num_processes
    if known != arguments.world_size:
        raise ValueError(f"pool.processes: expected the {arguments.world_size} processes of arguments, got {known}")
    if arguments.dataloader_num_workers:
        raise ValueError(f"arguments.dataloader_num_workers: expected 0, for workers do not see new drafts, got {arguments.dataloader_num_workers}")
    arguments.remove_unused_columns = False
    arguments.ignore_data_skip = True
    arguments.label_names = ["tokens"]
    return _DraftTrainer(
        model,
        arguments,
        data_collator=DraftCollator(pool.adapter, model.noise, pool.settings),
        train_dataset=pool,
        eval_dataset=evaluation,  # type: ignore[arg-type]
        compute_metrics=_measures,
        callbacks=[MarkComplete(), _Renewal(pool, report), *(callbacks or [])],
    )
