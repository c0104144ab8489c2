"""Tuning of any causal image model that an adapter exists for: next-clean-token prediction (2510.08994), and on the model's own drafts.

``finetune`` is the whole recipe, as ``sjd2 finetune`` runs it. Its parts serve a training of one's own:

    adapter = load_adapter(None, dtype=torch.float32)
    adapter.model.requires_grad_(True)
    noise = TuningNoise(NoiseLevels.karras(6))
    trainer = build_trainer(NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise), dataset, None, TrainingArguments(...))
    trainer.train()
    save_tuned(adapter, noise, "tuned")
"""

from .checkpoints import last_checkpoint
from .collator import Example, NoiseCollator
from .data import TokenExamples, read_examples
from .distillation import DraftCollator, DraftDistillation, DraftSettings
from .lora import add_lora, merge_lora, without_lora
from .model import NextCleanTokenModel
from .own_drafts import DraftPool, build_draft_trainer
from .plan import NoisePlan, TuningNoise, draw_plan
from .prepare import prepare_tokens
from .prompts import Prompts, read_prompts
from .recipe import finetune
from .save import save_tuned
from .settings import FinetuneSettings
from .trainer import build_trainer, nll_by_level
from .trajectories import Trajectory, record

__all__ = [
    "DraftCollator",
    "DraftDistillation",
    "DraftPool",
    "DraftSettings",
    "Example",
    "FinetuneSettings",
    "NextCleanTokenModel",
    "NoiseCollator",
    "NoisePlan",
    "Prompts",
    "TokenExamples",
    "Trajectory",
    "TuningNoise",
    "add_lora",
    "build_draft_trainer",
    "build_trainer",
    "draw_plan",
    "finetune",
    "last_checkpoint",
    "merge_lora",
    "nll_by_level",
    "prepare_tokens",
    "read_examples",
    "read_prompts",
    "record",
    "save_tuned",
    "without_lora",
]
