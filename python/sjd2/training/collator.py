"""Examples to batches: prompts padded on the left, tokens stacked, a noise plan drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from .plan import TuningNoise, draw_plan

__all__ = ["Example", "NoiseCollator"]


class Example(TypedDict):
    """A caption and the tokens of its image (slice ids, raster order)."""

    prompt: str
    tokens: Sequence[int] | torch.Tensor


class NoiseCollator:
    """Batches for :class:`NextCleanTokenModel`; the plan comes from PyTorch's global generator, which the ``Trainer`` saves and restores.

    Args:
        text: the model's tokenizer.
        noise: see :class:`TuningNoise`.
        drop_captions: share of captions replaced by an empty one, which guidance needs.
    """

    def __init__(self, text: PreTrainedTokenizerBase, noise: TuningNoise, *, drop_captions: float = 0.0):
        if not 0 <= drop_captions <= 1:
            raise ValueError(f"drop_captions: expected a number in [0, 1], got {drop_captions}")
        self.text, self.noise, self.drop_captions = text, noise, drop_captions

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch, by the names of the arguments of ``NextCleanTokenModel.forward``."""
        tokens = torch.stack([torch.as_tensor(example["tokens"], dtype=torch.int64) for example in examples])
        dropped = (torch.rand(len(examples)) < self.drop_captions).tolist()
        captions = ["" if drop else example["prompt"] for example, drop in zip(examples, dropped, strict=True)]
        prompt = self.text(captions, padding=True, padding_side="left", return_tensors="pt")
        batch, count = tokens.shape
        plan = draw_plan(batch, count, self.noise)
        return {
            "prompt_ids": prompt["input_ids"],
            "prompt_mask": prompt["attention_mask"],
            "tokens": tokens,
            "sequence_levels": plan.sequence_levels,
            "window_start": plan.window_start,
            "window_levels": plan.window_levels,
        }
