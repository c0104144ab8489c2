"""Measures of pictures that need no download: those of the embedded model, by the tokens it drew."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapters import EMBEDDED_MODEL, Adapter
from ..adapters.tiny_scenes import TinyScenesAdapter
from ..tiny_scenes.judge import Judge
from ..tiny_scenes.prompts import parse_prompt

__all__ = ["embedded_measures"]

#: Which word of a caption (garment, colour, background) a measure looks for; the likelihood is of every picture.
_PARTS = {"garment_right": 0, "colour_right": 1, "background_right": 2}


def embedded_measures(adapter: Adapter) -> Callable[[list[str], list[list[int]]], dict[str, list[float]]] | None:
    """What ``summarise`` measures pictures with, where the model is the embedded one or was tuned from it; ``None`` for any other.

    ``background_right``, ``colour_right`` and ``garment_right`` are shares of the pictures whose prompt names one; ``nll`` is in nats per token.
    """
    if not isinstance(adapter, TinyScenesAdapter):
        return None
    judge = Judge(adapter, EMBEDDED_MODEL)

    def measure(prompts: list[str], tokens: list[list[int]]) -> dict[str, list[float]]:
        named = [parse_prompt(prompt) for prompt in prompts]
        found = judge(prompts, torch.tensor(tokens))
        return {
            name: [value for value, parts in zip(values.tolist(), named, strict=True) if name not in _PARTS or parts[_PARTS[name]] is not None]
            for name, values in found.items()
        }

    return measure
