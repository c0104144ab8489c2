"""Confidence intervals: of means, of paired differences, and by the bootstrap of any statistic."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from statistics import NormalDist

import torch

__all__ = ["CONFIDENCE", "bootstrap_interval", "compare", "compare_ratio", "interval_factor", "mean_and_error"]

CONFIDENCE = 0.95

_RESAMPLES = 10_000


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean, and the half-width of its 95 % confidence interval."""
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def bootstrap_interval(
    values: torch.Tensor, statistic: Callable[[torch.Tensor], torch.Tensor], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Percentile interval of a statistic of independent ``values``; ``None`` of fewer than two.

    Args:
        values: ``[N]``, or ``[N, …]`` where a draw is one of N things.
        statistic: from resamples ``[R, N, …]`` to ``[R]``.

    The resamples are the same every time, so that a table written twice is the same.

    Example:
        >>> low, high = bootstrap_interval(torch.arange(100.0), lambda draws: draws.mean(1))
        >>> low < 49.5 < high
        True
    """
    if len(values) < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    size = max(1, 2_000_000 // values.numel())  # resamples at a time, so that memory stays small
    found: list[torch.Tensor] = []
    for first in range(0, _RESAMPLES, size):
        draws = torch.randint(len(values), (min(size, _RESAMPLES - first), len(values)), generator=generator)
        found.append(statistic(values.double()[draws]))
    low, high = torch.cat(found).quantile(torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)).tolist()
    return low, high


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
