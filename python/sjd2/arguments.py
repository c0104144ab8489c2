"""Checks of arguments that several entry points take."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

__all__ = ["check_callback", "number", "one_seed_each", "whole"]


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an int, or a ``ValueError`` that names it."""
    legal = f"a whole number >= {low}" if high is None else f"a whole number in [{low}, {high})"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}: expected {legal}, got {value!r}") from None
    if isinstance(value, bool) or number < low or (high is not None and number >= high):
        raise ValueError(f"{name}: expected {legal}, got {value!r}")
    return number


def check_callback(callback: object) -> None:
    """Refuse what cannot be called."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback: expected a function of a Progress, got {callback!r}")


def number(name: str, value: object) -> float:
    """``value``, or a ``ValueError`` that names it: no text and no list."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return float(value)


def one_seed_each(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per image: those given, or counted up from the one given."""
    if not isinstance(seed, Sequence):
        first = whole("seed", seed, 0, 2**63 - count)
        return [first + index for index in range(count)]
    if len(seed) != count:
        raise ValueError(f"seed: expected one number or {count} (one per image), got {len(seed)}")
    return [whole("seed", one, 0, 2**63) for one in seed]
