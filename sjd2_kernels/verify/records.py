"""The records of ``verify``: update rules, where a draft came from, what is retained of a forward, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch

from ..processing import RowStatistics

__all__ = ["Q_NONE", "Q_POINT", "Q_UNIFORM", "LastForward", "Rule", "Verification"]

#: ``q_row`` of a draft that has no usable draft distribution: never kept, drawn from p.
Q_NONE = -1
#: ``q_row`` of a draft drawn uniformly from the allowed ids.
Q_UNIFORM = -2
#: ``q_row`` of a draft that is known rather than drawn, such as a copied token: q is one-hot on it.
Q_POINT = -3


class Rule(str, Enum):
    """How every slot of a window is updated; see ``verify``."""

    FRESH = "fresh"
    """Modified rejection sampling up to the first rejection, fresh draws from p after it. Exact (SJD, 2410.01699)."""
    COUPLED = "coupled"
    """Modified rejection sampling on every slot. Exact (MC-SJD, 2510.24211)."""
    GUMBEL_TAIL = "gumbel-tail"
    """Modified rejection sampling up to the first rejection, frozen-noise Gumbel-max after it. Exact (GS-SJD, 2510.24211)."""
    GUMBEL = "gumbel"
    """Frozen-noise Gumbel-max on every slot, kept if unchanged. Exact, and token-identical to AR sampling with that noise."""
    KEEP_RATIO = "keep-ratio"
    """After the first rejection keep a draft whose p/q exceeds τ, else a fresh draw. **Not exact** (SJD++, 2512.07503)."""


@dataclass(frozen=True)
class LastForward:
    """What is retained of the previous iteration, so that q stays implicit: raw logits ``[B, W, V]`` and their statistics."""

    logits: torch.Tensor
    logits_uncond: torch.Tensor | None
    statistics: RowStatistics


class Verification(NamedTuple):
    """Result of ``verify``."""

    tokens: torch.Tensor
    """int64 ``[B, W]``: every slot's updated token; its law given earlier positions is p (exact rules)."""
    kept: torch.Tensor
    """bool ``[B, W]``: the draft survived."""
    committed: torch.Tensor
    """int64 ``[B]``: leading tokens that are final; 0 for a finished row, at least 1 otherwise."""
    statistics: RowStatistics
    """Of this iteration's logits; with them they are the next iteration's :class:`LastForward`."""
    invalid: torch.Tensor
    """bool ``[B]``: an unfinished row met NaN, +inf or a fully masked slot; its tokens are meaningless."""
