"""Confidence intervals of means and of paired differences."""

from __future__ import annotations

import statistics
from statistics import NormalDist

import torch

CONFIDENCE = 0.95


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean, and the half-width of its 95 % confidence interval."""
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def interval_factor(confidence: float, comparisons: int) -> float:
    """Standard errors to either side that hold ``comparisons`` normal differences at once (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - confidence) / (2 * comparisons))


def compare(values: torch.Tensor, reference: torch.Tensor, factor: float) -> dict[str, float]:
    """Mean and its difference to the reference, paired by prompt, with the half-width of the interval."""
    delta = (values - reference).double()
    return {"mean": float(values.mean()), "delta": float(delta.mean()), "interval": factor * float(delta.std()) / len(delta) ** 0.5}


def compare_ratio(values: torch.Tensor, reference: torch.Tensor, factor: float) -> dict[str, float]:
    """Ratio r of the means of paired values, with the half-width of its interval: r makes the mean of ``values − r·reference`` 0 (delta method)."""
    ratio = float(values.double().mean() / reference.double().mean())
    rest = values.double() - ratio * reference.double()
    return {"ratio": ratio, "interval": factor * float(rest.std() / reference.double().mean()) / len(rest) ** 0.5}
