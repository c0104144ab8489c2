"""What threads begin and wait for later: copies into shared memory and products of warpgroups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["Pending"]


class Pending:
    """What was begun and not yet waited for. Groups are those of every thread, as programs of a machine are at different places."""

    def __init__(self, lanes: int):
        self.closed = np.zeros(lanes, np.int64)  # groups that a lane has closed
        self._begun: list[tuple[np.ndarray, np.ndarray, np.ndarray, Callable[[np.ndarray], None]]] = []

    def begin(self, lanes: np.ndarray, finish: Callable[[np.ndarray], None]) -> None:
        """Into the open group of ``lanes``; ``finish`` is called with places in ``lanes`` when they have waited for it, once for each."""
        self._begun.append((lanes, self.closed[lanes], np.arange(len(lanes)), finish))

    def commit(self, lanes: np.ndarray) -> None:
        """Close the open group."""
        self.closed[lanes] += 1

    def wait(self, lanes: np.ndarray, most: int) -> None:
        """Until no more than ``most`` closed groups are left. What is in the open group is not waited for."""
        here = np.zeros(len(self.closed), bool)
        here[lanes] = True
        left = []
        for threads, group, places, finish in self._begun:
            over = here[threads] & (group < self.closed[threads] - most)
            if over.any():
                finish(places[over])
            if not over.all():
                left.append((threads[~over], group[~over], places[~over], finish))
        self._begun = left
