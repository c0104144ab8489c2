"""Where a caller changes the distributions that are drawn from, or ends rows for reasons of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from .state import WindowState

__all__ = ["Rules"]


class Rules(Protocol):
    """Looks at every iteration of a run.

    Exact as long as what a slot is given depends on its row's tokens before it alone.
    """

    #: Whether rows are known by their number; then none leaves the batch before all are finished.
    numbered: bool

    def targets(self, logits: torch.Tensor, logits_uncond: torch.Tensor | None, state: WindowState) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the iteration draws from instead of the model's ``logits [B, W, V]``, given the window's ``state`` before it."""
        ...

    def stopped(self, state: WindowState) -> torch.Tensor:
        """bool ``[B]``: rows that end with what the iteration has just committed."""
        ...
