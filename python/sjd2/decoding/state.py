"""What a run carries along: its fixed plan, the state that iterations read and write, and how both begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from sjd2_kernels import Q_NONE, LastForward, LogitsProcessing, RowStatistics

from ..cache import RaggedCache
from ..denoising.window import Denoiser, NoisyWindow
from .initialisation import uniform_drafts
from .layout import TokenLayout
from .model import DecodableModel, Prompt
from .presets import Preset
from .rules import Rules
from .statistics import Stopwatch

__all__ = ["Plan", "WindowState", "begin", "per_model_row", "slots"]


@dataclass(frozen=True)
class Plan:
    """What no iteration changes; rows that leave the batch leave it here too."""

    model: DecodableModel
    layout: TokenLayout
    processing: LogitsProcessing
    preset: Preset
    seeds: torch.Tensor
    guided: bool
    structural: bool  # whether the layout forces ids from V on
    cache: type[RaggedCache]
    compact: bool
    denoiser: Denoiser | None = None
    rules: Rules | None = None

    def image_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` as the ops take them, who know image ids alone: another one, which ends no row, where a structural one stands."""
        if not self.structural:
            return ids
        return ids.masked_fill(ids >= self.model.vocab_size, 1 if self.layout.end_id == 0 else 0)

    def select(self, rows: torch.Tensor) -> Plan:
        """The plan of ``rows``, int64 ``[S]``."""
        return replace(self, layout=self.layout.select(rows), processing=self.processing.select(rows), seeds=self.seeds[rows])

    def model_rows(self, rows: torch.Tensor, batch: int) -> torch.Tensor:
        """The model rows of ``rows`` of ``batch``: with guidance their unconditional partners, too."""
        return torch.cat([rows, rows + batch]) if self.guided else rows


@dataclass
class WindowState:
    """What an iteration reads and writes; every tensor has a row per image (``tail`` and the cache a row per model row)."""

    tokens: torch.Tensor  # int64 [B, N + W], committed below `committed`
    committed: torch.Tensor  # int64 [B]
    remaining: torch.Tensor  # int64 [B], 0 once the row is finished
    drafts: torch.Tensor  # int64 [B, W]
    q_row: torch.Tensor  # int64 [B, W], where each draft came from
    forced: torch.Tensor  # int64 [B, W], the known ids of structural slots, -1 elsewhere
    tail: torch.Tensor  # [R, 1, D], input embedding of the newest committed token
    last: LastForward | None
    iteration: torch.Tensor  # int64 [B], the row's forwards
    accepted: torch.Tensor  # int64 [B]
    invalid: torch.Tensor  # bool [B]
    noise: NoisyWindow | None = None

    def select(self, rows: torch.Tensor, model_rows: torch.Tensor) -> WindowState:
        """Some of the rows, int64 ``[S]``."""
        last, noise = self.last, self.noise
        if last is not None:
            uncond = None if last.logits_uncond is None else last.logits_uncond[rows]
            last = LastForward(last.logits[rows], uncond, RowStatistics(*(values[rows] for values in last.statistics)))
        if noise is not None:
            noise = NoisyWindow(noise.levels[rows], noise.embeds[rows])
        selected: dict[str, Any] = {name: getattr(self, name)[rows] for name in _PER_ROW}
        return replace(self, **selected, tail=self.tail[model_rows], last=last, noise=noise)

    def replaced(self, rows: torch.Tensor, model_rows: torch.Tensor, others: WindowState) -> WindowState:
        """With ``others``, which have just begun, at ``rows``. No draft of theirs comes from the last forward, so that stays as it is."""

        def put(values: torch.Tensor, at: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            return values.index_copy(0, at, new)

        noise = self.noise
        if noise is not None and others.noise is not None:
            noise = NoisyWindow(put(noise.levels, rows, others.noise.levels), put(noise.embeds, rows, others.noise.embeds))
        changed: dict[str, Any] = {name: put(getattr(self, name), rows, getattr(others, name)) for name in _PER_ROW}
        return replace(self, **changed, tail=put(self.tail, model_rows, others.tail), noise=noise)


_PER_ROW = ("tokens", "committed", "remaining", "drafts", "q_row", "forced", "iteration", "accepted", "invalid")


def slots(start: torch.Tensor, window: int) -> torch.Tensor:
    """Absolute positions ``[B, W]`` of the slots that follow ``start`` tokens."""
    return start[:, None] + torch.arange(window, device=start.device)


def per_model_row(values: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Repeat a per-image tensor for the unconditional branch, which shares drafts and commits."""
    return torch.cat([values, values]) if plan.guided else values


def begin(plan: Plan, prompt: Prompt, stopwatch: Stopwatch, capacity: int | None = None) -> tuple[WindowState, RaggedCache]:
    """Run the prompt but for its last input, and fill the first window with drafts.

    The cache has ``capacity`` columns; without a number it is dense, and has those of the prompt alone.
    """
    layout, window = plan.layout, plan.preset.window
    batch, count = layout.forced.shape
    rows, width, _ = prompt.embeds.shape
    device = prompt.embeds.device
    cache = plan.model.new_cache(rows, capacity or max(width - 1, 1), plan.cache if capacity else RaggedCache)
    if width > 1:
        with stopwatch:
            plan.model.forward(prompt.embeds[:, :-1], cache, outputs=slice(0, 1))  # nobody looks at what a prompt predicts
        cache.commit(prompt.lengths - 1)
    cache.begin_image(prompt.lengths, count, layout.places)
    tail = prompt.embeds[torch.arange(rows, device=device), prompt.lengths - 1][:, None]

    zeros = torch.zeros(batch, dtype=torch.int64, device=device)
    positions = slots(zeros, window)
    if plan.preset.initialisation == "none":
        drafts, q_row = torch.zeros_like(positions), torch.full_like(positions, Q_NONE)
    else:  # there is nothing to the left or above yet
        drafts, q_row = uniform_drafts(plan.processing, plan.model.vocab_size, plan.seeds, zeros, positions)
    forced = layout.forced_at(positions)
    state = WindowState(
        tokens=torch.zeros(batch, count + window, dtype=torch.int64, device=device),
        committed=zeros,
        remaining=layout.lengths,
        drafts=torch.where(forced >= 0, forced, drafts),
        q_row=q_row,
        forced=forced,
        tail=tail,
        last=None,
        iteration=zeros,
        accepted=zeros,
        invalid=torch.zeros(batch, dtype=torch.bool, device=device),
    )
    if plan.denoiser is not None:
        state.noise = plan.denoiser.begin(state.drafts, forced, plan.seeds, zeros)
    return state, cache
