"""Iterations as CUDA graphs: recorded once per shape, replayed with one launch, so that neither Python nor the driver is waited for.

A graph reads and writes the memory it was recorded with. So the state of a run stays in place: an iteration reads it, and what it makes of it is
copied back as the graph's last operations (the logits, too: what that costs is a fraction of writing them). Rows that are admitted are copied into
the same places. A batch that shrinks is another shape, and so is another number of columns that attention reads.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..cache import RaggedCache
from ..recording import Recorder
from .loop import iterate
from .state import Plan, WindowState
from .statistics import Stopwatch

__all__ = ["Eager", "Graphed", "columns_at_once"]


def columns_at_once(capacity: int) -> int:
    """Of a cache of ``capacity`` columns: so many that graphs read one of at most eight numbers of them."""
    return max(64, -(-capacity // (8 * 64)) * 64)


class Eager:
    """One operation after the other.

    Args:
        columns: what attention reads is rounded up to a multiple of this.
    """

    def __init__(self, columns: int = 16):
        self.columns = columns

    def __call__(self, plan: Plan, state: WindowState, cache: RaggedCache, stopwatch: Stopwatch) -> WindowState:
        """The state after one more iteration."""
        iterate(plan, state, cache, stopwatch)
        return state


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of a record, and of the records in it, in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from _tensors(one)


def _cloned(value: Any) -> Any:
    """A record whose tensors are its own."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _cloned(getattr(value, field.name)) for field in dataclasses.fields(value)})
    if isinstance(value, tuple):
        parts = [_cloned(one) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _copy(into: Any, of: Any) -> None:
    for old, new in zip(_tensors(into), _tensors(of), strict=True):
        if old is not new:
            old.copy_(new)


def _shapes(*records: Any) -> list[torch.Size]:
    return [tensor.shape for record in records for tensor in _tensors(record)]


def _per_row(plan: Plan) -> tuple[Any, ...]:
    """What of a plan belongs to its rows."""
    return plan.layout, plan.processing, plan.seeds


class Graphed:
    """Iterations as graphs; the first one of a shape runs operation by operation, so that whatever is made at its first use is there.

    If an iteration cannot be recorded (a model whose forward asks the host, for instance), a warning says why, and the run goes on without graphs.

    Args:
        record: makes a graph.
        capacity: columns of the cache.
    """

    def __init__(self, record: Recorder, capacity: int):
        self.record = record
        self.columns = columns_at_once(capacity)
        self._plan: Plan | None = None
        self._state: WindowState | None = None
        self._graphs: dict[int, Callable[[], None]] = {}
        self._warm: set[int] = set()
        self._refused = False

    @property
    def usable(self) -> bool:
        """Whether iterations can be recorded, as far as is known."""
        return not self._refused

    def __call__(self, plan: Plan, state: WindowState, cache: RaggedCache, stopwatch: Stopwatch) -> WindowState:
        """The state after one more iteration; the same object as long as no row comes or goes."""
        if self._refused:
            iterate(plan, state, cache, stopwatch)
            return state
        if not self._adopt(plan, state):
            # Without a last forward ``verify`` is another kernel: graphs hold the one of all later iterations, which then has yet to run.
            warm = set() if state.last is None else {cache.extent}
            iterate(plan, state, cache, stopwatch)
            self._warm = warm
            return self._keep(plan, state)
        assert self._plan is not None
        assert self._state is not None
        if cache.extent not in self._warm:
            self._warm.add(cache.extent)
            self._iteration(self._plan, self._state, cache)()
            return self._state
        if cache.extent not in self._graphs:
            try:
                self._graphs[cache.extent] = self.record(self._iteration(self._plan, self._state, cache))
            except RuntimeError as error:
                self._refused = True
                warnings.warn(f"graphs: iterations run one operation after the other, for they could not be recorded: {error}", stacklevel=4)
                iterate(self._plan, self._state, cache, stopwatch)
                return self._state
        self._graphs[cache.extent]()
        return self._state

    def _adopt(self, plan: Plan, state: WindowState) -> bool:
        """Whether the state is in the graphs' places: it is theirs, or rows were admitted, which are copied there."""
        if state is self._state:
            return True
        if self._plan is None or self._state is None or _shapes(*_per_row(plan), state) != _shapes(*_per_row(self._plan), self._state):
            return False
        _copy(_per_row(self._plan), _per_row(plan))
        _copy(self._state, state)
        return True

    def _keep(self, plan: Plan, state: WindowState) -> WindowState:
        """Give plan and state their places, and return the state there."""
        layout, processing, seeds = _cloned(_per_row(plan))
        self._plan = replace(plan, layout=layout, processing=processing, seeds=seeds)
        self._state = _cloned(state)
        assert self._state is not None
        self._graphs.clear()
        return self._state

    @staticmethod
    def _iteration(plan: Plan, state: WindowState, cache: RaggedCache) -> Callable[[], None]:
        def work() -> None:
            after = replace(state)
            iterate(plan, after, cache, nullcontext())
            _copy(state, after)

        return work
