"""Noise levels: the times of a schedule, and which level each slot of a window has.

A noisy embedding is ``e_t = (1 − t)·e + t·ε`` (2510.08994): t = 1 is pure noise, t = 0 the token's own embedding. Level k has time
``times[k]``; level 0 is clean. How much of the token shows at time t depends on the width D: the energy of the signal against the
noise is ``D·((1 − t)/t)²``, so in wide models all but the last few tenths of t are as good as clean. ``signal`` spaces levels evenly in
that energy's logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["NoiseLevels", "window_levels"]


@dataclass(frozen=True)
class NoiseLevels:
    """``times[k]`` for k = 0 … K, rising from 0 to at most 1; build one by name or give any."""

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        rising = all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        if len(self.times) < 2 or self.times[0] != 0 or not rising or self.times[-1] > 1:
            raise ValueError(f"times: expected 0 followed by rising numbers up to 1, got {self.times}")

    @property
    def steps(self) -> int:
        """K, the level of a fresh slot."""
        return len(self.times) - 1

    @classmethod
    def karras(cls, steps: int, *, rho: float = 7.0, t_min: float = 0.02, t_max: float = 1.0) -> NoiseLevels:
        """Spacing of Karras et al. (2206.00364): levels 1 … K from ``t_min`` to ``t_max``, even in ``t^(1/rho)``; rho 1 is linear."""
        _check(steps, t_min, t_max)
        if not (math.isfinite(rho) and rho > 0):
            raise ValueError(f"rho: expected a number > 0, got {rho}")
        low, high = t_min ** (1 / rho), t_max ** (1 / rho)
        return cls((0.0, *((low + _fraction(k, steps) * (high - low)) ** rho for k in range(1, steps + 1))))

    @classmethod
    def signal(cls, steps: int, width: int, *, weakest: float = 1.0, strongest: float = 64.0) -> NoiseLevels:
        """Levels 1 … K−1 even in the logarithm of ``width·((1 − t)/t)²``, from ``strongest`` down to ``weakest``; level K is pure noise."""
        _check(steps, 0.5, 1.0)
        if not 0 < weakest <= strongest < math.inf:
            raise ValueError(f"weakest, strongest: expected 0 < weakest <= strongest, got {weakest} and {strongest}")
        if width < 1:
            raise ValueError(f"width: expected a whole number >= 1, got {width}")
        energies = [math.exp(math.log(strongest) + _fraction(k, steps - 1) * math.log(weakest / strongest)) for k in range(1, steps)]
        return cls((0.0, *(1 / (1 + math.sqrt(energy / width)) for energy in energies), 1.0))


def _fraction(k: int, steps: int) -> float:
    """Where level k of 1 … steps lies between 0 and 1; a single level is the last."""
    return (k - 1) / (steps - 1) if steps > 1 else 1.0


def _check(steps: int, t_min: float, t_max: float) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps: expected a whole number >= 1, got {steps}")
    if not 0 < t_min <= t_max <= 1:
        raise ValueError(f"t_min, t_max: expected 0 < t_min <= t_max <= 1, got {t_min} and {t_max}")


def window_levels(window: int, steps: int, *, clean: int, per_level: int) -> torch.Tensor:
    """Level of every slot by its distance from the front, int64 ``[W]``: ``clean`` slots of level 0, then ``per_level`` slots of each level to K.

    A slot that comes nearer to the front takes the lower of its level and this one. With one step per iteration instead, K iterations
    pass before a slot is clean, and no more than about W/K tokens can be committed per forward.

    Raises:
        ValueError: ``clean`` or ``per_level`` below 1.
    """
    if clean < 1 or per_level < 1:
        raise ValueError(f"clean, per_level: expected whole numbers >= 1, got {clean} and {per_level}")
    distance = torch.arange(window) - clean
    return (distance.div(per_level, rounding_mode="floor") + 1).clamp(min=0, max=steps)
