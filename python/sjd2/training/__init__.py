"""Next-clean-token tuning (2510.08994) for any causal image model that an adapter exists for.

``finetune`` is the whole recipe, as ``sjd2 finetune`` runs it. Its parts serve a training of one's own:

    adapter = load_adapter(None, dtype=torch.float32)
    adapter.model.requires_grad_(True)
    noise = TuningNoise(NoiseLevels.karras(6))
    trainer = build_trainer(NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise), dataset, None, TrainingArguments(...))
    trainer.train()
    save_tuned(adapter, noise, "tuned")
"""

from .collator import Example, NoiseCollator
from .data import TokenExamples, read_examples
from .lora import add_lora, merge_lora
from .model import NextCleanTokenModel
from .plan import NoisePlan, TuningNoise, draw_plan
from .recipe import FinetuneSettings, finetune
from .save import save_tuned
from .trainer import build_trainer, last_checkpoint, nll_by_level

__all__ = [
    "Example",
    "FinetuneSettings",
    "NextCleanTokenModel",
    "NoiseCollator",
    "NoisePlan",
    "TokenExamples",
    "TuningNoise",
    "add_lora",
    "build_trainer",
    "draw_plan",
    "finetune",
    "last_checkpoint",
    "merge_lora",
    "nll_by_level",
    "read_examples",
    "save_tuned",
]
