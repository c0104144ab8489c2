"""Decode one ragged batch of table rows and compare the counts of the outcomes with the exact joint law."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import stats

from sjd2.decoding import Preset, TokenLayout, decode
from sjd2_kernels import LogitsProcessing

from .tables import TableModel, exact_joint

#: Where rows are decoded: ``SJD2_TEST_DEVICE=cuda`` takes the law tests through the fused ops.
DEVICE = os.environ.get("SJD2_TEST_DEVICE", "cpu")

#: A lossless method fails a test of this kind by chance once in a million runs; seeds are fixed, so a pass stays one.
FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class Cell:
    """One setting of the law test; rows cycle through ``groups`` of (prompt length, image length, conditional table)."""

    vocab_size: int = 3
    count: int = 5
    rows: int = 120_000
    processing: dict = field(default_factory=dict)
    guided: bool = False
    forced: tuple[int, ...] = ()
    outside: bool = False  # tokens forced to V − 1 stand outside the head's rows instead; to the tables they are the same
    end_id: int = -1
    row_stride: int = 2
    seed: int = 0
    groups: tuple[tuple[int, int, int], ...] = ((1, 5, 0), (3, 5, 1), (2, 4, 0), (4, 3, 2))


def _forced(cell: Cell) -> list[int]:
    return list(cell.forced) + [-1] * (cell.count - len(cell.forced))


def decode_cell(cell: Cell, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Outcome code and group of every row."""
    model = TableModel(cell.vocab_size, cell.count, tables=4, seed=cell.seed, device=DEVICE)
    group = torch.arange(cell.rows) % len(cell.groups)
    prompt_length, length, table = torch.tensor(cell.groups)[group].T.contiguous()
    if cell.guided:  # the unconditional branch has a prompt length of its own
        prompt = model.prompt(torch.cat([table, torch.full_like(table, 3)]), torch.cat([prompt_length, torch.full_like(table, 2)]))
    else:
        prompt = model.prompt(table, prompt_length)
    forced = torch.tensor(_forced(cell)).expand(cell.rows, -1).contiguous()
    if cell.outside:
        forced = torch.where(forced == cell.vocab_size - 1, cell.vocab_size, forced)
    result = decode(
        model,
        prompt,
        TokenLayout(forced.to(DEVICE), length.to(DEVICE), row_stride=cell.row_stride, end_id=cell.end_id),
        LogitsProcessing.create(cell.rows, device=DEVICE, **cell.processing),
        preset,
        torch.arange(cell.rows, device=DEVICE) + (cell.seed << 32),
    )
    tokens = result.tokens.cpu()
    if cell.outside:
        there = (forced == cell.vocab_size) & (torch.arange(cell.count) < length[:, None])
        assert torch.equal((tokens >= cell.vocab_size) & ~there, torch.zeros_like(there))
        assert (tokens >= cell.vocab_size).any()
        tokens = tokens.clamp(max=cell.vocab_size - 1)
    codes = (tokens * cell.vocab_size ** torch.arange(cell.count)).sum(1)
    return codes.numpy(), group.numpy()


@dataclass(frozen=True)
class Agreement:
    """How the counts of one cell compare with the exact joint; the worst of its groups.

    Attributes:
        p_value: of the chi-square test, corrected for the number of groups.
        variation: total variation distance to the exact joint.
        floor: the distance that sampling alone stays below, but for one run in a million.
    """

    p_value: float
    variation: float
    floor: float

    @property
    def holds(self) -> bool:
        """Neither measure sees a difference."""
        return self.p_value > FALSE_ALARM and self.variation < self.floor


def sampling_floor(expected: np.ndarray, total: float) -> float:
    """Total variation that ``total`` draws from ``expected`` itself exceed once in ``1/FALSE_ALARM`` runs, or less often.

    The mean is at most ½ Σ √(p(1−p)/n) (Jensen), and since one draw moves the distance by at most 1/n, McDiarmid's inequality bounds the rest.
    """
    mean = 0.5 * np.sqrt(expected * (1 - expected) / total).sum()
    return float(mean + np.sqrt(np.log(1 / FALSE_ALARM) / (2 * total)))


def with_noise(preset: Preset) -> Preset:
    """The preset as it is, but if it denoises with one clean slot: the default leaves none of a small window's inputs noisy."""
    if preset.denoising is None:
        return preset
    return replace(preset, denoising=replace(preset.denoising, clean=1, per_level=1))


def agreement(cell: Cell, preset: Preset) -> Agreement:
    """Decode ``cell`` by ``preset`` and compare each group's counts with its exact joint law."""
    codes, group = decode_cell(cell, preset)
    model = TableModel(cell.vocab_size, cell.count, tables=4, seed=cell.seed)
    p_values, distances = [], []
    for number, (_, length, table) in enumerate(cell.groups):
        processing = dict(cell.processing)
        allowed = processing.pop("allowed", None)
        expected = exact_joint(
            model, table, 3 if cell.guided else None, length, _forced(cell), cell.end_id,
            allowed=None if allowed is None else allowed.numpy(), **processing,
        )  # fmt: skip
        counts = np.bincount(codes[group == number], minlength=len(expected)).astype(float)
        total = counts.sum()
        distances.append((0.5 * np.abs(counts / total - expected).sum(), sampling_floor(expected, total)))
        assert counts[expected == 0].sum() == 0, "an impossible sequence was decoded"
        # Outcomes too rare for the chi-square approximation are counted together.
        rare = expected * total < 5
        observed = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(expected[~rare], expected[rare].sum()) * total
        observed, wanted = observed[wanted > 0], wanted[wanted > 0]
        p_values.append(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue if len(wanted) > 1 else 1.0)
    variation, floor = max(distances, key=lambda pair: pair[0] - pair[1])
    return Agreement(min(1.0, min(p_values) * len(p_values)), variation, floor)
