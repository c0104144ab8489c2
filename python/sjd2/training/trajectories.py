"""What decoding is faced with: the drafts that a model's own windows held, and the tokens that came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sjd2_kernels import LogitsProcessing

from ..adapters import Adapter
from ..decoding import Preset, decode
from ..tracing.recorder import Recorder

__all__ = ["Trajectory", "record"]


@dataclass(frozen=True)
class Trajectory:
    """One image's decoding, iteration by iteration.

    Attributes:
        prompt: its caption.
        guidance_scale: that it was decoded with.
        tokens: int16 or int32 ``[N]``, the finished image.
        committed: int32 ``[I + 1]``, tokens that were final before each iteration, and N.
        drafts: like ``tokens``, ``[I, W]``, of the window behind them.
        seed: of the windows and the noise that are drawn when it is learnt from.
    """

    prompt: str
    guidance_scale: float
    tokens: torch.Tensor
    committed: torch.Tensor
    drafts: torch.Tensor
    seed: int = 0


def record(
    adapter: Adapter, prompts: Sequence[str], preset: Preset, guidance_scales: Sequence[float], seeds: torch.Tensor, **processing: Any
) -> list[Trajectory]:
    """Decode ``prompts`` by ``preset`` with a guidance scale and a seed each, and write down every window but the first.

    Args:
        adapter: of the model as it is now.
        processing: of ``LogitsProcessing.create``.
    """
    recorder = Recorder()
    count = len(prompts)
    layout = adapter.layout(count)
    result = decode(
        adapter,
        adapter.prompt(prompts, [adapter.defaults.negative_prompt] * count),
        layout,
        LogitsProcessing.create(count, guidance_scale=list(guidance_scales), device=adapter.device, **processing),
        preset,
        seeds.to(adapter.device),
        callback=recorder,
    )
    tokens = result.tokens.cpu()
    small = torch.int16 if max(int(adapter.vocab_size) - 1, int(layout.forced.max())) < 2**15 else torch.int32
    (recording,) = recorder.recordings()
    return [
        Trajectory(
            prompt=prompts[i],
            guidance_scale=float(guidance_scales[i]),
            tokens=tokens[i].to(small),
            committed=recording.committed[i, : row.forwards].int(),
            drafts=recording.drafts[i, : row.forwards - 1].to(small).clone(),
            seed=int(seeds[i]),
        )
        for i, row in enumerate(result.rows)
    ]
