"""How a model is tuned, whatever it is tuned on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .distillation import DraftSettings
from .plan import TuningNoise

__all__ = ["FinetuneSettings"]

#: Optimiser steps of tuning on own drafts, which has no epochs.
DRAFT_STEPS = 1000


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is tuned.

    Attributes:
        noise: where and how noise is added.
        drafts: tune on the model's own drafts, for which prompts are enough; ``None``: on images with captions, or their tokens.
        steps: of the optimiser; default: as many as ``epochs`` over the data take, or 1000 on own drafts.
        epochs: passes over the data.
        batch_size, gradient_accumulation: examples per forward, and forwards per step. Several processes share their product: fewer forwards each as
            far as that goes, then smaller ones.
        learning_rate: its highest; default 2e-5 (2510.08994), with LoRA 2e-4. Small models take far more.
        seed: of order, noise, dropped captions and LoRA's first weights.
        drop_captions: share of captions replaced by guidance's unconditional branch of them, as decoding without a negative prompt has it.
        held_out: share of the data that is not trained on and evaluated instead, unless there is data for that; 0 for no evaluation.
        lora: rank of LoRA; ``None`` trains all parameters.
        gradient_checkpointing: compute activations again instead of keeping them: less memory, about a third more time.
        bf16: multiply in bfloat16; with LoRA, frozen weights that were stored in bfloat16 stay in it.
        height, width: of images in pixels, where the model makes several sizes; default: the model's. The tuned model has them as its own.
        save_every, eval_every: steps between checkpoints, and between evaluations (default: a tenth of all).

    Raises:
        ValueError: a number out of its range.
    """

    noise: TuningNoise = field(default_factory=TuningNoise)
    drafts: DraftSettings | None = None
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
    height: int | None = None
    width: int | None = None
    save_every: int = 200
    eval_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "lora", "height", "width", "save_every", "eval_every"):
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
        if self.drafts is not None:
            return self.steps or DRAFT_STEPS
        return self.steps or max(1, math.ceil(self.epochs * examples / (self.batch_size * self.gradient_accumulation)))
