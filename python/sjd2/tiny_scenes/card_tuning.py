"""The model card's section on tuning: what it cost, and NLL of clean and noisy inputs before and after."""

from __future__ import annotations

from typing import Any

import torch

from ..adapters.tiny_scenes import TinyScenesAdapter
from ..denoising import Denoising
from ..training import NextCleanTokenModel, NoiseCollator, TuningNoise
from .likelihood import sequence_statistics
from .scenes import SceneBatch

__all__ = ["mean_likelihood", "tuning_section"]

_SECTION = """
## Tuning

    python -m sjd2.tiny_scenes.tune --base BASE -o TUNED

makes the shipped weights of the base model: {steps:,} steps of {batch} images that the model drafted itself for the {prompts:,} prompts of training,
with the base as teacher ([how](tuning.md)); {seconds:,.0f} seconds on one core, recording of drafts included. Slots of stale and of noisy windows
were taught to predict what the finished image predicts, and the law of plain AR sampling was held near that of the base. NLL in nats per token:

{table}

*Level k* is what slots at that noise level predict, in windows beside the image (held-out photos, {scenes} scenes); t = 1 is pure noise.
"""


def mean_likelihood(adapter: TinyScenesAdapter, batch: SceneBatch) -> tuple[float, float]:
    """Mean NLL and entropy of the image tokens of ``batch``, nats per token."""
    codes = adapter.tokenizer.encode(batch.pixels).flatten(1)
    parts = [sequence_statistics(adapter.model, adapter.text, batch.captions[i : i + 64], codes[i : i + 64]) for i in range(0, len(codes), 64)]
    nll, entropy = (torch.cat(values).mean().item() for values in zip(*parts, strict=True))
    return nll, entropy


@torch.no_grad()
def _by_level(adapter: TinyScenesAdapter, captions: list[str], codes: torch.Tensor, denoising: Denoising) -> list[float]:
    """NLL of what inputs of level 1, 2, … predict of ``codes [N, T]``, under the same noise for every model."""
    noise = TuningNoise(denoising.levels, windows=4, window=28, timesteps=denoising.timesteps, normalise=denoising.normalise)
    model, collate = NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise)
    examples: list[Any] = [{"prompt": caption, "tokens": row, "seed": n} for n, (caption, row) in enumerate(zip(captions, codes, strict=True))]
    parts = [model(**collate(examples[i : i + 8])) for i in range(0, len(examples), 8)]
    nll, count = (torch.cat([part[name] for part in parts]).sum(0)[1:] for name in ("nll", "count"))
    return (nll / count).tolist()


def tuning_section(tuned: TinyScenesAdapter, base: TinyScenesAdapter | None, log: dict[str, Any], sets: dict[str, SceneBatch], scenes: int) -> str:
    """The section; empty for a model that is not tuned. Without ``base`` there is nothing to compare with, and its column is missing.

    Args:
        log: what tuning wrote.
        sets: scenes by name; the second is the one that levels are measured on.
        scenes: of those, so many for the levels.
    """
    if tuned.denoising is None:
        return ""
    models = {"base": base, "tuned": tuned} if base is not None else {"tuned": tuned}
    name = list(sets)[1]
    captions, codes = sets[name].captions[:scenes], tuned.tokenizer.encode(sets[name].pixels[:scenes]).flatten(1)
    columns = []
    for model in models.values():
        columns.append([mean_likelihood(model, batch)[0] for batch in sets.values()] + _by_level(model, captions, codes, tuned.denoising))
    rows = [f"clean: {name}" for name in sets] + [f"level {k}, t = {time:.2f}" for k, time in enumerate(tuned.denoising.levels.times[1:], start=1)]
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    lines += [f"| {row} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for row, *values in zip(rows, *columns, strict=True)]
    command = log["command"]
    return _SECTION.format(
        steps=command["steps"],
        batch=command["batch_size"],
        prompts=log["examples"] + log["held_out"],
        seconds=log["seconds"],
        table="\n".join(lines),
        scenes=scenes,
    )
