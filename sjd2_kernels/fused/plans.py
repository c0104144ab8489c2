"""How rows of logits are divided over programs, and what scratch that takes.

The division follows from the vocabulary, for rows that share a program from the number of rows, and for the room of candidates from the largest
top-k; never from the device, so a result is the same on every GPU of a kind. All sizes are known on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch

from ..sampling.inverse_cdf import BLOCK
from . import INTERPRETED

__all__ = ["ALIGN", "DrawPlan", "StatisticsPlan", "draw_plan", "first_guess", "next_power", "rows_per_program", "statistics_plan"]

#: Longest row that one program holds in its registers without spilling.
SINGLE = 8_192
#: Ids per program of a longer row: 32 a thread, so that what is done once per thread counts little.
SPLIT = 4_096
#: Logits that a load takes at most, where rows begin at multiples of as many.
ALIGN = 8
#: Candidates per row that the splits leave together, at least and at most.
CANDIDATES = 1_024, 8_192
#: Blocks of ``BLOCK`` ids per drawing program.
BLOCKS_PER_PROGRAM = 8
#: Elements of a tile up to which short rows share a program; interpreted programs cost the same whatever their size.
TILE = 65_536 if INTERPRETED else 1_024


def next_power(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << max(count - 1, 0).bit_length()


def rows_per_program(width: int, rows: int) -> int:
    """How many of ``rows`` rows that are ``width`` wide share a program."""
    return max(1, min(TILE // width, next_power(rows)))


@cache
def first_guess(per_split: int, split: int) -> float:
    """How far from mean to maximum the border of a split lies that leaves three quarters of its room, if its logits are normal."""
    normal = NormalDist()
    return normal.inv_cdf(1 - 0.75 * per_split / split) / normal.inv_cdf(1 - 0.5 / split)


@dataclass(frozen=True)
class StatisticsPlan:
    """How a row's statistics are found: in one program (``splits`` 1) or over several."""

    splits: int
    block: int
    rows: int
    per_split: int
    warps: int

    def scratch(self, rows: int, search: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what the splits of ``rows`` rows leave for the merge."""
        if self.splits == 1:
            return {}
        part = (rows, self.splits)
        floats = {f"part_{name}_ptr": (part, torch.float32) for name in ("max", "mass", "usable")}
        integers = {f"part_{name}_ptr": (part, torch.int32) for name in ("bad", "border")}
        return floats | integers | {"candidates_ptr": ((*part, self.per_split) if search else (1,), torch.int16)}


def statistics_plan(rows: int, vocab: int, top_k: int = 0) -> StatisticsPlan:
    """The plan for ``rows`` rows of ``vocab`` ids, of which ``top_k`` at most are kept (0: any number).

    Splits leave half of their room or more, and not all have as many of the highest ids: there is room for four times ``top_k``.
    """
    if vocab <= SINGLE:
        block = max(16, next_power(vocab))
        rows = rows_per_program(block, rows)
        warps = 4 if block * rows <= 4096 else 8
        return StatisticsPlan(1, block, rows, 0, warps)
    splits = -(-vocab // SPLIT)
    least, most = CANDIDATES
    room = min(most, max(least, next_power(4 * top_k))) if top_k else most
    return StatisticsPlan(splits, SPLIT, 1, min(SPLIT, max(1, room // next_power(splits))), 4)


@dataclass(frozen=True)
class DrawPlan:
    """How a row's blocks are divided over drawing programs."""

    block: int
    blocks: int
    splits: int
    per_split: int
    rows: int

    def scratch(self, rows: int, residual: bool, frozen: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the scratch of ``rows`` rows."""
        best = (rows, self.splits) if frozen and self.splits > 1 else (1, 1)
        return {
            "masses_ptr": ((rows, 2, self.blocks) if residual else (1, 1, 1), torch.float32),
            "best_value_ptr": (best, torch.float32),
            "best_id_ptr": (best, torch.int32),
        }


def draw_plan(rows: int, vocab: int) -> DrawPlan:
    """The plan for ``rows`` rows of ``vocab`` ids."""
    block = min(BLOCK, max(16, next_power(vocab)))
    blocks = -(-vocab // block)
    splits = -(-blocks // BLOCKS_PER_PROGRAM)
    return DrawPlan(block, blocks, splits, min(blocks, BLOCKS_PER_PROGRAM), rows_per_program(block, rows) if splits == 1 else 1)
