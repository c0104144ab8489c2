"""The settings of denoising, as a preset holds them."""

from __future__ import annotations

from dataclasses import dataclass

from .levels import NoiseLevels

__all__ = ["Denoising"]

#: Six levels spaced as Karras et al. do.
KARRAS = NoiseLevels.karras(6)


@dataclass(frozen=True)
class Denoising:
    """How slots are born as noise and become clean.

    Attributes:
        levels: the schedule.
        clean: slots at the front that are clean and can be verified; slots behind them are born as noise.
        per_level: slots of each level behind the clean ones. A slot that comes nearer to the front takes the lower of its level and this one.
        normalise: add noise in the normalised embedding space. Without it denoising fails (2510.08994).
        timesteps: feed timestep tokens.
        nearest: the draft of a noisy slot is the id whose embedding is nearest to its input, by cosine, as published; this gives up exactness.

    Raises:
        ValueError: ``clean`` or ``per_level`` is below 1.
    """

    levels: NoiseLevels = KARRAS
    clean: int = 48
    per_level: int = 3
    normalise: bool = True
    timesteps: bool = True
    nearest: bool = False

    def __post_init__(self) -> None:
        for name in ("clean", "per_level"):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
