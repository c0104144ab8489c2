"""Finished rows leave the batch, so that the others get cheaper; results stay in the order in which the rows came.

A batch shrinks only where the host looks anyway, and only to powers of two: few sizes of forward, and copies that pay for themselves.
Finished rows fill up to the next size. A row's tokens do not depend on its mates, so none of them changes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from sjd2_kernels import LastForward, RowStatistics

from ..cache import RaggedCache
from ..denoising.window import NoisyWindow
from .state import Plan, WindowState

__all__ = ["Ledger", "compact"]


@dataclass(frozen=True)
class _Outcome:
    """What is reported of the rows."""

    tokens: torch.Tensor
    committed: torch.Tensor
    iteration: torch.Tensor
    accepted: torch.Tensor
    drafts: torch.Tensor
    levels: torch.Tensor | None

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name; there are no levels where nothing is denoised."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Ledger:
    """Which rows of the run the state holds, and what became of all of them.

    Attributes:
        rows: number, in the order of the prompts, of each row of the state.
    """

    def __init__(self, batch: int):
        self.rows = list(range(batch))
        self._all: _Outcome | None = None  # until rows leave, the state holds all of them
        self._index: torch.Tensor | None = None

    def outcome(self, state: WindowState) -> _Outcome:
        """Of all rows of the run, in the order of the prompts."""
        levels = None if state.noise is None else state.noise.levels
        current = _Outcome(state.tokens, state.committed, state.iteration, state.accepted, state.drafts, levels)
        if self._all is None or self._index is None:
            return current
        everyone = self._all.tensors()
        for name, values in current.tensors().items():
            everyone[name].index_copy_(0, self._index, values)
        return self._all

    def keep(self, state: WindowState, rows: torch.Tensor) -> None:
        """Write down ``state``, of which only ``rows`` will remain."""
        outcome = self.outcome(state)
        self._all = replace(outcome, **{name: values.clone() for name, values in outcome.tensors().items()}) if self._all is None else outcome
        self._index = rows if self._index is None else self._index[rows]
        self.rows = self._index.tolist()


def _kept_rows(remaining: list[int]) -> list[int] | None:
    """Unfinished rows, filled up with finished ones to a power of two; ``None`` if that is no fewer than there are."""
    finished = [row for row, left in enumerate(remaining) if left == 0]
    active = len(remaining) - len(finished)
    size = 1 << max(active - 1, 0).bit_length()
    if size >= len(remaining):
        return None
    dropped = set(finished[size - active :])
    return [row for row in range(len(remaining)) if row not in dropped]


def _select_last(last: LastForward | None, rows: torch.Tensor) -> LastForward | None:
    if last is None:
        return None
    uncond = None if last.logits_uncond is None else last.logits_uncond[rows]
    return LastForward(last.logits[rows], uncond, RowStatistics(*(values[rows] for values in last.statistics)))


def compact(plan: Plan, state: WindowState, cache: RaggedCache, ledger: Ledger, remaining: list[int]) -> tuple[Plan, WindowState]:
    """Plan and state of the rows that go on, given every row's ``remaining`` tokens as the host saw them."""
    kept = _kept_rows(remaining)
    if kept is None:
        return plan, state
    rows = torch.tensor(kept, device=state.tokens.device)
    model_rows = torch.cat([rows, rows + len(remaining)]) if plan.guided else rows
    ledger.keep(state, rows)
    cache.compact(model_rows)
    plan = replace(plan, layout=plan.layout.select(rows), processing=plan.processing.select(rows), seeds=plan.seeds[rows])
    per_row = ("tokens", "committed", "remaining", "drafts", "q_row", "forced", "iteration", "accepted", "invalid")
    selected = {name: getattr(state, name)[rows] for name in per_row}
    noise = None if state.noise is None else NoisyWindow(state.noise.levels[rows], state.noise.embeds[rows])
    return plan, replace(state, **selected, tail=state.tail[model_rows], last=_select_last(state.last, rows), noise=noise)
