"""What a run carries along: its fixed plan, the state that iterations read and write, and how both begin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sjd2_kernels import Q_NONE, LastForward, LogitsProcessing

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


def slots(start: torch.Tensor, window: int) -> torch.Tensor:
    """Absolute positions ``[B, W]`` of the slots that follow ``start`` tokens."""
    return start[:, None] + torch.arange(window, device=start.device)


def per_model_row(values: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Repeat a per-image tensor for the unconditional branch, which shares drafts and commits."""
    return torch.cat([values, values]) if plan.guided else values


def begin(plan: Plan, prompt: Prompt, stopwatch: Stopwatch) -> tuple[WindowState, RaggedCache]:
    """Run the prompt but for its last input, and fill the first window with drafts.

    Raises:
        ValueError: more positions than the model has.
    """
    layout, window = plan.layout, plan.preset.window
    batch, count = layout.forced.shape
    rows, width, _ = prompt.embeds.shape
    device = prompt.embeds.device
    extra = 0 if plan.denoiser is None else len(plan.denoiser.timesteps)
    limit = plan.model.position_limit
    if limit is not None and width - 1 + count > limit:
        raise ValueError(f"prompt: prompt and image together need {width - 1 + count} positions, the model has {limit}")
    if limit is not None and window > limit:
        raise ValueError(f"window: expected at most the model's {limit} positions, got {window}")
    cache = plan.model.new_cache(rows, width - 1 + count + window + extra, plan.cache)
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
