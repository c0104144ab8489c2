"""The settings of denoising, as a preset holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .levels import NoiseLevels

__all__ = ["Denoising"]

#: Six levels spaced as Karras et al. do.
KARRAS = NoiseLevels.karras(6)


@dataclass(frozen=True)
class Denoising:
    """How slots are born as noise and become clean.

    Attributes:
        levels: the schedule.
        clean: slots at the front that are clean and can be verified, as a number of slots (int) or a share of the window (float in (0, 1]);
            slots behind them are born as noise.
        per_level: slots of each level behind the clean ones. A slot that comes nearer to the front takes the lower of its level and this one.
        normalise: add noise in the normalised embedding space. Without it denoising fails (2510.08994).
        timesteps: feed timestep tokens.
        nearest: the draft of a noisy slot is the id whose embedding is nearest to its input, by cosine, as published; this gives up exactness.

    Raises:
        ValueError: no levels, or ``clean`` or ``per_level`` out of its range.
    """

    levels: NoiseLevels = KARRAS
    clean: int | float = 0.75
    per_level: int = 3
    normalise: bool = True
    timesteps: bool = True
    nearest: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.levels, NoiseLevels):
            raise ValueError(f"levels: expected NoiseLevels, got {self.levels!r}")
        if not (isinstance(self.clean, int) and not isinstance(self.clean, bool) and self.clean >= 1) and not (
            isinstance(self.clean, float) and 0 < self.clean <= 1
        ):
            raise ValueError(f"clean: expected a whole number >= 1, or a share of the window in (0.0, 1.0], got {self.clean!r}")
        if not isinstance(self.per_level, int) or isinstance(self.per_level, bool) or self.per_level < 1:
            raise ValueError(f"per_level: expected a whole number >= 1, got {self.per_level!r}")

    def timestep_tokens(self, window: int) -> int:
        """Timestep tokens of a forward: one per level, if a noisy slot of a window of W can be fed (the last one never is)."""
        return self.levels.steps if self.timesteps and self.clean_slots(window) < window - 1 else 0

    def clean_slots(self, window: int) -> int:
        """Clean slots of a window of W, from 1 to W."""
        return min(window, self.clean if isinstance(self.clean, int) else max(1, round(self.clean * window)))

    @classmethod
    def from_config(cls, entry: Mapping[str, Any]) -> Denoising:
        """What a tuned model's configuration holds: ``{"times": [0, …], "timesteps": …, "normalise": …}``.

        Raises:
            ValueError: something else.
        """
        try:
            if set(entry) != {"times", "timesteps", "normalise"} or not {type(entry["timesteps"]), type(entry["normalise"])} <= {bool}:
                raise ValueError("expected times, timesteps and normalise")
            return cls(NoiseLevels(tuple(float(time) for time in entry["times"])), timesteps=entry["timesteps"], normalise=entry["normalise"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"sjd2.denoising: {error}, got {entry!r}") from error

    def to_config(self) -> dict[str, Any]:
        """The entry that :meth:`from_config` reads."""
        return {"times": list(self.levels.times), "timesteps": self.timesteps, "normalise": self.normalise}
