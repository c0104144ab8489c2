"""Examples to batches: prompts padded on the left, tokens stacked, a noise plan drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch

from ..adapters import Adapter
from .plan import NoisePlan, TuningNoise, draw_plan

__all__ = ["Example", "NoiseCollator"]


class Example(TypedDict):
    """A caption (empty: none) and the tokens of its image, N slice ids in the order they are decoded."""

    prompt: str
    tokens: Sequence[int] | torch.Tensor


class NumberedExample(Example):
    """An example with the seed of all that is drawn for it.

    Attributes:
        seed: of its noise.
        dropped: in place of the caption the model is fed what guidance's other branch is for it; default: no.
    """

    seed: int
    dropped: NotRequired[bool]


class NoiseCollator:
    """Batches for :class:`NextCleanTokenModel`.

    Each example's plan, and the seed of its noise, come from the seed that the example carries (``build_trainer`` gives every example of a run
    its own), so they depend neither on the batch, nor on the process that trains on it, nor on how often the run was resumed.

    Args:
        adapter: of the model.
        noise: see :class:`TuningNoise`.
    """

    def __init__(self, adapter: Adapter, noise: TuningNoise | None = None):
        self.adapter, self.noise = adapter, noise or TuningNoise()
        self.structural = (adapter.layout(1).forced[0] >= 0).cpu()

    def _prompt_ids(self, examples: Sequence[NumberedExample]) -> list[list[int]]:
        """Of captions, and of the unconditional branch where one was dropped: in some families that depends on the caption's length."""
        captions = [example["prompt"] for example in examples]
        given, dropped = self.adapter.prompt_ids(captions), [place for place, example in enumerate(examples) if example.get("dropped")]
        partners = self.adapter.partner_ids([captions[place] for place in dropped], [""] * len(dropped)) if dropped else []
        for place, ids in zip(dropped, partners, strict=True):
            given[place] = ids
        return given

    def __call__(self, examples: Sequence[NumberedExample]) -> dict[str, Any]:
        """One batch, by the names of the arguments of ``NextCleanTokenModel.forward``."""
        tokens = torch.stack([torch.as_tensor(example["tokens"], dtype=torch.int64) for example in examples])
        prompts = [torch.tensor(ids) for ids in self._prompt_ids(examples)]
        generators = [torch.Generator().manual_seed(example["seed"]) for example in examples]
        plan = NoisePlan.stack([draw_plan(tokens.shape[1], self.noise, generator, self.structural) for generator in generators])
        return {
            # What stands in the padding is masked.
            "prompt_ids": torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left"),
            "prompt_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True, padding_side="left"),
            "tokens": tokens,
            **plan._asdict(),
            "noise_seed": torch.stack([torch.randint(2**62, (), generator=generator) for generator in generators]),
        }
