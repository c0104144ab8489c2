"""Rows that wait take the places of rows that are finished, so that the batch stays full (continuous batching).

A new row's prompt runs in a cache of its own, whose columns then move to its place. Nothing of the row that was there before is read again:
lengths, drafts and where they came from are the new row's own. Rows do not depend on their mates, so no token changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cache import RaggedCache
from .ledger import Ledger
from .model import Prompt
from .state import Plan, WindowState, begin
from .statistics import Stopwatch

__all__ = ["admit"]


def admit(
    whole: Plan,
    state: WindowState,
    cache: RaggedCache,
    ledger: Ledger,
    prompt: Prompt,
    places: Sequence[int],
    numbers: Sequence[int],
    stopwatch: Stopwatch,
) -> tuple[Plan, WindowState]:
    """Plan and state with rows ``numbers`` of the run at ``places``; ``whole`` is the plan, and ``prompt`` has the prompts, of all rows."""
    device, size = state.tokens.device, len(ledger.rows)
    ledger.replace(state, places, numbers)
    entering = torch.tensor(numbers, device=device)
    plan = whole.select(entering)
    begun, its_cache = begin(plan, prompt.select(plan.model_rows(entering, len(whole.seeds))), stopwatch)
    rows = torch.tensor(places, device=device)
    model_rows = plan.model_rows(rows, size)
    cache.admit(model_rows, its_cache)
    return whole.select(ledger.index), state.replaced(rows, model_rows, begun)
