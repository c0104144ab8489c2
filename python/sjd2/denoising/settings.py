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
    """How slots are born as noise and become clean, and where else noise stands in for a token that is not known yet.

    Attributes:
        levels: the schedule.
        clean: slots at the front that are clean and can be verified; slots behind them are born as noise.
        per_level: slots of each level behind the clean ones. A slot that comes nearer to the front takes the lower of its level and this one.
        branches: clean slots at the front that have a branch (see ``rows.py``); 0 for none.
        branch_length: slots of a branch.
        normalise: add noise in the normalised embedding space. Without it denoising fails (2510.08994).
        timesteps: feed timestep tokens.
        nearest: the draft of a noisy slot is the id whose embedding is nearest to its input, by cosine, as published; this gives up exactness.

    Raises:
        ValueError: a number out of its range, or branches that reach behind the clean slots.
    """

    levels: NoiseLevels = KARRAS
    clean: int = 48
    per_level: int = 3
    branches: int = 0
    branch_length: int = 3
    normalise: bool = True
    timesteps: bool = True
    nearest: bool = False

    def __post_init__(self) -> None:
        for name, least in (("clean", 1), ("per_level", 1), ("branches", 0), ("branch_length", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")

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

    def branches_in(self, window: int) -> int:
        """Branches of a window of W slots: no more than fit, with all their slots, into its clean slots."""
        return max(0, min(self.branches, min(self.clean, window) - self.branch_length))
