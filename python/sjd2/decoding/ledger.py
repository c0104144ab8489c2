"""Which rows of a run are being decoded, and what has become of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from .state import WindowState

__all__ = ["Ledger", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What is reported of rows; a row each."""

    tokens: torch.Tensor
    committed: torch.Tensor
    drafts: torch.Tensor
    levels: torch.Tensor | None

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name; there are no levels where nothing is denoised."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Ledger:
    """Rows of a run have numbers, in the order in which they were given; a row of the state is whichever of them it decodes now.

    Attributes:
        rows: number of each row of the state.
        index: the same as a tensor, int64 ``[S]``.
    """

    def __init__(self, batch: int, rows: Sequence[int], device: torch.device):
        self._batch = batch
        self._all: Outcome | None = None  # until rows leave, the state holds all of them
        self._device = device
        self._set(rows)

    def _set(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self.index = torch.tensor(self.rows, dtype=torch.int64, device=self._device)

    def outcome(self, state: WindowState) -> Outcome:
        """Of all rows of the run, in the order of their numbers; zeros of those that wait."""
        current = Outcome(state.tokens, state.committed, state.drafts, None if state.noise is None else state.noise.levels)
        if self._all is None and len(self.rows) == self._batch:
            return current
        if self._all is None:
            empty = {name: values.new_zeros(self._batch, *values.shape[1:]) for name, values in current.tensors().items()}
            self._all = replace(current, **empty)
        everyone = self._all.tensors()
        for name, values in current.tensors().items():
            everyone[name].index_copy_(0, self.index, values)
        return self._all

    def keep(self, state: WindowState, places: Sequence[int]) -> None:
        """Write down ``state``, of which only the rows at ``places`` will remain."""
        outcome = self.outcome(state)
        if self._all is None:
            self._all = replace(outcome, **{name: values.clone() for name, values in outcome.tensors().items()})
        self._set([self.rows[place] for place in places])

    def replace(self, state: WindowState, places: Sequence[int], numbers: Sequence[int]) -> None:
        """Write down ``state``, in which rows ``numbers`` will take the ``places`` of others."""
        self.outcome(state)
        rows = self.rows
        for place, number in zip(places, numbers, strict=True):
            rows[place] = number
        self._set(rows)
