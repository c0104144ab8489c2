"""Where noise goes in a training sequence.

``windows`` (default, ours): the sequence stays clean and several windows as decoding has them stand beside it, each at a random place,
seeing the clean tokens before it and its own slots. Clean and noisy prediction are trained by the same forward, and a noisy slot's
context is that of decoding.

``segments`` (as published, 2510.08994): the sequence itself is cut into segments of one level each, levels rising from segment to segment
and falling back to clean at random places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..denoising.levels import NoiseLevels

__all__ = ["NoisePlan", "TuningNoise", "draw_plan"]


@dataclass(frozen=True)
class TuningNoise:
    """How tuning makes sequences noisy.

    Attributes:
        levels: of decoding.
        layout: ``windows`` or ``segments``, see the module.
        windows, window: number of windows beside a sequence, and slots of each.
        segment: shortest and longest run of slots of one level.
        clean_run: most clean slots at the beginning of a window; with the true tokens they repeat the sequence, with drafts they are what
            decoding has there.
        timesteps: append timestep tokens.
        normalise: add noise in the normalised embedding space.
        stale_share: share of training batches whose windows hold the model's own drafts instead of the true tokens, under the same noise.
    """

    levels: NoiseLevels
    layout: Literal["windows", "segments"] = "windows"
    windows: int = 4
    window: int = 32
    segment: tuple[int, int] = (3, 6)
    clean_run: int = 0
    timesteps: bool = True
    normalise: bool = True
    stale_share: float = 0.0

    def __post_init__(self) -> None:
        if self.layout not in ("windows", "segments"):
            raise ValueError(f"layout: expected windows or segments, got {self.layout!r}")
        if self.windows < 1 or self.window < 1:
            raise ValueError(f"windows, window: expected whole numbers >= 1, got {self.windows} and {self.window}")
        if not 1 <= self.segment[0] <= self.segment[1]:
            raise ValueError(f"segment: expected 1 <= shortest <= longest, got {self.segment}")
        if self.clean_run < 0:
            raise ValueError(f"clean_run: expected a whole number >= 0, got {self.clean_run}")
        if not 0 <= self.stale_share <= 1:
            raise ValueError(f"stale_share: expected a number in [0, 1], got {self.stale_share}")


@dataclass(frozen=True)
class NoisePlan:
    """Levels of one batch.

    Attributes:
        sequence_levels: int64 ``[B, N−1]``, of the inputs of the sequence itself.
        window_start: int64 ``[B, M]``: the first image token of each window; M is 0 with ``segments``.
        window_levels: int64 ``[B, M, S]``.
    """

    sequence_levels: torch.Tensor
    window_start: torch.Tensor
    window_levels: torch.Tensor


def _rising(rows: int, length: int, first: torch.Tensor, noise: TuningNoise) -> torch.Tensor:
    """Levels ``[rows, length]`` that rise from ``first [rows]`` by one per segment of random length, up to K."""
    low, high = noise.segment
    ends = torch.randint(low, high + 1, (rows, noise.levels.steps)).cumsum(1)
    passed = (torch.arange(length)[None, :, None] >= ends[:, None]).sum(-1)
    return (first[:, None] + passed).clamp(max=noise.levels.steps)


def _segments(rows: int, length: int, noise: TuningNoise) -> torch.Tensor:
    """Levels ``[rows, length]``: clean runs and rises in turn, each rise broken off at a random place."""
    steps = noise.levels.steps
    rise = steps * sum(noise.segment) // 2
    levels = torch.zeros(rows, length, dtype=torch.int64)
    for row in levels:
        place = int(torch.randint(-rise, 1, ()))  # the first run may have begun before the sequence
        while place < length:
            place += int(torch.randint(1, rise + 1, ()))  # a clean run
            run = int(torch.randint(1, rise + 1, ()))
            begin, end = max(place, 0), min(place + run, length)
            if end > begin:
                row[begin:end] = _rising(1, place + run - place, torch.ones(1, dtype=torch.int64), noise)[0, begin - place : end - place]
            place += run
    return levels


def draw_plan(batch: int, count: int, noise: TuningNoise) -> NoisePlan:
    """A random plan for ``batch`` sequences of ``count`` image tokens; uses PyTorch's global CPU generator."""
    inputs = count - 1  # the last token is predicted, not fed
    if noise.layout == "segments":
        none = torch.zeros(batch, 0, dtype=torch.int64)
        return NoisePlan(_segments(batch, inputs, noise), none, none[..., None])
    slots = min(noise.window, inputs)
    start = torch.randint(0, inputs - slots + 1, (batch, noise.windows))
    rows = batch * noise.windows
    # Most windows begin at the lowest level, as behind a clean front; the others at any, as when the front moves fast or decoding has just begun.
    first = torch.where(torch.rand(rows) < 0.5, 1, torch.randint(1, noise.levels.steps + 1, (rows,)))
    clean = torch.randint(0, noise.clean_run + 1, (rows, 1))
    slot = torch.arange(slots) - clean
    levels = _rising(rows, slots, first, noise).gather(1, slot.clamp(min=0)).masked_fill(slot < 0, 0)
    return NoisePlan(torch.zeros(batch, inputs, dtype=torch.int64), start, levels.view(batch, noise.windows, slots))
