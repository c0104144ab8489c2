"""Finished rows leave the batch, so that the others get cheaper; results stay in the order in which the rows came.

A batch shrinks only where the host looks anyway, and only to powers of two: few sizes of forward, and copies that pay for themselves.
Finished rows fill up to the next size. A row's tokens do not depend on its mates, so none of them changes.
"""

from __future__ import annotations

import torch

from ..cache import RaggedCache
from .ledger import Ledger
from .state import Plan, WindowState

__all__ = ["compact"]


def _kept_rows(remaining: list[int]) -> list[int] | None:
    """Unfinished rows, filled up with finished ones to a power of two; ``None`` if that is no fewer than there are."""
    finished = [row for row, left in enumerate(remaining) if left == 0]
    active = len(remaining) - len(finished)
    size = 1 << max(active - 1, 0).bit_length()
    if size >= len(remaining):
        return None
    dropped = set(finished[size - active :])
    return [row for row in range(len(remaining)) if row not in dropped]


def compact(whole: Plan, plan: Plan, state: WindowState, cache: RaggedCache, ledger: Ledger, remaining: list[int]) -> tuple[Plan, WindowState]:
    """Plan and state of the rows that go on, given every row's ``remaining`` tokens as the host saw them; ``whole`` is the plan of all rows."""
    kept = _kept_rows(remaining)
    if kept is None:
        return plan, state
    rows = torch.tensor(kept, device=state.tokens.device)
    model_rows = plan.model_rows(rows, len(remaining))
    ledger.keep(state, kept)
    cache.compact(model_rows)
    return whole.select(ledger.index), state.select(rows, model_rows)
