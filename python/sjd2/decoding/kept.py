"""What a run leaves for the next one of its kind: its graphs, with the memory that they read and write.

Recording takes about as long as some iterations do operation by operation, for every number of columns: much of an image that takes few iterations. A
graph is bound to its memory, so the next run moves into it: all of its rows are admitted at once, as a waiting row is in the place of a finished one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ..cache import RaggedCache
from .graphs import Graphed
from .state import Plan, WindowState

__all__ = ["Kept", "KeptRun", "kind_of_run"]

#: As which a cache's columns are counted, so that a prompt that is a word longer has room, too.
COLUMNS = 64


@dataclass(frozen=True)
class KeptRun:
    """The graphs of a run that has ended, its state and its cache."""

    advance: Graphed
    state: WindowState
    cache: RaggedCache

    def fits(self, model_rows: int, columns: int) -> bool:
        """Whether a run of so many model rows and columns can take its place."""
        return len(self.cache.lengths) == model_rows and self.cache.capacity >= columns


class Kept:
    """Room for one :class:`KeptRun`, which holds its memory until another takes its place or :meth:`drop` is called."""

    def __init__(self) -> None:
        self._kind: Any = None
        self._run: KeptRun | None = None

    def take(self, kind: Any) -> KeptRun | None:
        """The run that is kept, if it is of this kind. It is gone from here in any case: a run that fails leaves nothing behind."""
        run = self._run if self._run is not None and self._kind == kind else None
        self.drop()
        return run

    def put(self, kind: Any, run: KeptRun) -> None:
        """Keep ``run``, unless its iterations could not be recorded."""
        if run.advance.usable:
            self._kind, self._run = kind, run

    def drop(self) -> None:
        """Let go of it."""
        self._kind = self._run = None


def _weights(model: Any) -> tuple[tuple[int, int], ...]:
    """Where the parameters of a model lie, and how often each was written to."""
    module = getattr(model, "model", None)
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, torch.nn.Module) else []
    return tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


def _settings(record: Any) -> tuple[Any, ...]:
    """Fields that are no tensors, and which are there at all: graphs hold them."""
    values = (getattr(record, field.name) for field in dataclasses.fields(record))
    return tuple(isinstance(value, torch.Tensor) or value for value in values)


def kind_of_run(plan: Plan, attention: str) -> Any:
    """What two runs have to have in common for the graphs of one to be those of the other, beside the shapes of their tensors."""
    places = plan.layout.places
    return (
        id(plan.model),
        _weights(plan.model),
        plan.preset,
        plan.guided,
        plan.structural,
        plan.cache,
        attention,
        plan.layout.forced.shape[1],
        _settings(plan.layout),
        None if places is None else places.tolist(),
        _settings(plan.processing),
    )
