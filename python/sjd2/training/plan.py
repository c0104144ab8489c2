"""Where noise goes in a training sequence.

``windows`` (default, ours): the sequence stays clean and several windows as decoding has them stand beside it, each at a random place,
seeing the clean tokens before it and its own slots. Clean and noisy prediction are trained by the same forward, and a noisy slot's
context is that of decoding.

``segments`` (as published, 2510.08994): the sequence itself is cut into segments of one level each, levels rising from segment to segment
and falling back to clean at random places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ..denoising import Denoising, NoiseLevels
from ..denoising.settings import KARRAS

__all__ = ["NoisePlan", "TuningNoise", "draw_plan"]


def _whole(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")


@dataclass(frozen=True)
class TuningNoise:
    """How tuning makes sequences noisy.

    Attributes:
        levels: those of decoding; six as Karras et al. space them by default.
        layout: ``windows`` or ``segments``, see the module.
        windows, window: of ``windows``: how many beside a sequence, and slots of each.
        segment: shortest and longest run of slots of one level.
        timesteps: append timestep tokens.
        normalise: add noise in the normalised embedding space.

    Raises:
        ValueError: an unknown layout, or a number out of its range.
    """

    levels: NoiseLevels = KARRAS
    layout: Literal["windows", "segments"] = "windows"
    windows: int = 4
    window: int = 32
    segment: tuple[int, int] = (3, 6)
    timesteps: bool = True
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.layout not in ("windows", "segments"):
            raise ValueError(f"layout: expected windows or segments, got {self.layout!r}")
        _whole("windows", self.windows)
        _whole("window", self.window)
        if len(self.segment) != 2 or not 1 <= self.segment[0] <= self.segment[1]:
            raise ValueError(f"segment: expected 1 <= shortest <= longest, got {self.segment}")

    @property
    def denoising(self) -> Denoising:
        """What decoding has to know of a model tuned with this."""
        return Denoising(self.levels, timesteps=self.timesteps, normalise=self.normalise)


class NoisePlan(NamedTuple):
    """Noise levels of B sequences of N image tokens, and of the M windows of S slots beside each.

    The last token of a sequence is predicted and never fed, so a sequence has N − 1 inputs.
    """

    sequence_levels: torch.Tensor
    """int64 ``[B, N − 1]``."""
    window_start: torch.Tensor
    """int64 ``[B, M]``: the image token that stands in the first slot of each window; M is 0 with ``segments``."""
    window_levels: torch.Tensor
    """int64 ``[B, M, S]``."""

    @classmethod
    def stack(cls, plans: Sequence[NoisePlan]) -> NoisePlan:
        """One plan for the sequences of several."""
        return cls(*(torch.cat(values) for values in zip(*plans, strict=True)))


def _rising(length: int, first: torch.Tensor, noise: TuningNoise, generator: torch.Generator) -> torch.Tensor:
    """Levels ``[rows, length]`` that rise from ``first [rows]`` by one per segment of random length, up to K."""
    low, high = noise.segment
    ends = torch.randint(low, high + 1, (len(first), noise.levels.steps), generator=generator).cumsum(1)
    passed = torch.searchsorted(ends, torch.arange(length).expand(len(first), -1).contiguous(), right=True)
    return (first[:, None] + passed).clamp(max=noise.levels.steps)


def _segments(length: int, noise: TuningNoise, generator: torch.Generator) -> torch.Tensor:
    """Levels ``[length]``: clean runs and rises in turn, both of at most the slots that a rise through all levels takes on average."""

    def randint(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    longest = max(1, noise.levels.steps * sum(noise.segment) // 2)
    levels, one = torch.zeros(length, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    place = randint(-longest, 0)  # the first run may have begun before the sequence
    while place < length:
        place += randint(1, longest)  # a clean run
        rise = _rising(randint(1, longest), one, noise, generator)[0]
        begin, end = max(place, 0), min(place + len(rise), length)
        if begin < end:
            levels[begin:end] = rise[begin - place : end - place]
        place += len(rise)
    return levels


def _windows(inputs: int, noise: TuningNoise, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts ``[M]`` and levels ``[M, S]`` of the windows beside a sequence."""
    count, slots, steps = noise.windows, min(noise.window, inputs), noise.levels.steps
    start = torch.randint(0, inputs - slots + 1, (count,), generator=generator)
    # Half of the windows begin at the lowest level, as behind a clean front; the others at any, as when the front moves fast or decoding begins.
    anywhere = torch.randint(1, steps + 1, (count,), generator=generator)
    first = torch.where(torch.rand(count, generator=generator) < 0.5, 1, anywhere)
    return start, _rising(slots, first, noise, generator)


def draw_plan(count: int, noise: TuningNoise, generator: torch.Generator, structural: torch.Tensor | None = None) -> NoisePlan:
    """A random plan for one sequence of ``count`` image tokens.

    Args:
        structural: bool ``[count]``, tokens that are known before decoding (end of line …): always clean, as in decoding.
    """
    inputs = count - 1
    if noise.layout == "segments":
        levels, start = _segments(inputs, noise, generator), torch.zeros(0, dtype=torch.int64)
        window_levels = torch.zeros(0, 0, dtype=torch.int64)
    else:
        levels = torch.zeros(inputs, dtype=torch.int64)
        start, window_levels = _windows(inputs, noise, generator)
    if structural is not None:
        levels = levels.masked_fill(structural[:inputs], 0)
        window_levels = window_levels.masked_fill(structural[start[:, None] + torch.arange(window_levels.shape[1])], 0)
    return NoisePlan(levels[None], start[None], window_levels[None])
