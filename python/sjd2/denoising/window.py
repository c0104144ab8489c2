"""What SJD2 adds to the loop: slots that are born as noise and are denoised as they come nearer to the front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from sjd2_kernels import denoise

from ..cache import ExtraColumns
from .embedding import EmbeddingStatistics
from .levels import window_levels
from .rows import WindowRows
from .settings import Denoising
from .timesteps import timestep_embeddings

__all__ = ["Denoiser", "NoisyWindow"]


class _Embeddings(Protocol):
    def image_embeddings(self) -> torch.Tensor: ...


@dataclass
class NoisyWindow:
    """Of the slots of B windows: ``levels`` int64 ``[B, W]`` (0: clean) and the ``embeds [B, W, D]`` that they are fed."""

    levels: torch.Tensor
    embeds: torch.Tensor


class Denoiser:
    """Denoising of one run, see ``Denoising``; ``rows`` are those of its forwards."""

    def __init__(self, settings: Denoising, window: int, model: _Embeddings, device: torch.device):
        self.settings, self.weight = settings, model.image_embeddings()
        statistics = EmbeddingStatistics.of(self.weight)
        if not settings.normalise:
            statistics = EmbeddingStatistics.identity_like(statistics)
        self.statistics = statistics
        self.times = torch.tensor(settings.levels.times, dtype=statistics.mean.dtype, device=device)
        steps = settings.levels.steps
        self.at_distance = window_levels(window, steps, clean=settings.clean, per_level=settings.per_level).to(device)
        self.timesteps = timestep_embeddings(settings.levels, statistics, self.weight.dtype)[: steps if settings.timesteps else 0]
        self.rows = WindowRows(window, settings.branches_in(window), settings.branch_length, len(self.timesteps), device)

    @property
    def extra_inputs(self) -> int:
        """Inputs of a forward behind its window."""
        return self.rows.rows - self.rows.window + len(self.timesteps)

    def _denoise(
        self, before: NoisyWindow, drafts: torch.Tensor, committed: torch.Tensor, levels: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor
    ):
        return denoise(
            before.embeds,
            self.weight,
            self.statistics.mean,
            self.statistics.std,
            tokens=drafts,
            committed=committed,
            levels=self.times[before.levels],
            next_levels=self.times[levels],
            seeds=seeds,
            position=position,
        )

    def _born(self, window: int, drafts: torch.Tensor, levels: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Slots of a window without a past, ``[B, window, D]``: noise, or at level 0 the draft's embedding."""
        drafts, levels = drafts[:, :window], levels[:, :window]
        nothing = NoisyWindow(levels, self.weight.new_empty(*drafts.shape, self.weight.shape[1]))
        return self._denoise(nothing, drafts, torch.full_like(position, window), levels, seeds, position)

    def begin(self, drafts: torch.Tensor, forced: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor) -> NoisyWindow:
        """The first window: a slot behind the clean ones is noise, unless it is structural."""
        levels = torch.where((forced >= 0) | (self.at_distance == 0), 0, self.settings.levels.steps)
        return NoisyWindow(levels, self._born(levels.shape[1], drafts, levels, seeds, position))

    def inputs(self, window: NoisyWindow, drafts: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Inputs ``[B, W − 1 + N·L + K, D]`` behind the newest committed token; ``position [B]`` is that of slot 0."""
        parts = [window.embeds[:, :-1]]
        if self.rows.branches:
            levels = torch.full_like(drafts, self.settings.levels.steps)
            noise = self._born(self.rows.branches, drafts, levels, seeds, position)
            parts.append(torch.where(self.rows.noise[:, None], noise.repeat_interleave(self.rows.length, 1), window.embeds[:, self.rows.fed]))
        parts.append(self.timesteps.expand(len(drafts), -1, -1))
        return torch.cat(parts, dim=1)

    def columns(self, window: NoisyWindow, rows: int) -> ExtraColumns | None:
        """See ``WindowRows.columns``; ``rows`` model rows share the windows."""
        levels = torch.cat([torch.zeros_like(window.levels[:, :1]), window.levels[:, :-1]], dim=1)
        return self.rows.columns(levels.repeat(rows // len(levels), 1))

    def step(
        self, window: NoisyWindow, drafts: torch.Tensor, committed: torch.Tensor, forced: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor
    ):
        """Shift the window over ``committed [B]`` tokens and bring every slot to the level of its distance, toward the embedding of its draft.

        Args:
            drafts: int64 ``[B, W]`` of the next window, whose slot 0 is at ``position [B]``.
            forced: int64 ``[B, W]``: structural slots of the next window are clean.

        Returns:
            The next window, and its drafts: with ``nearest`` those of noisy slots change.
        """
        slot = torch.arange(drafts.shape[1], device=drafts.device)
        source = slot + committed[:, None]
        survives = source < drafts.shape[1]
        before = torch.where(survives, window.levels.gather(1, source.clamp(max=drafts.shape[1] - 1)), self.settings.levels.steps)
        levels = torch.where(survives | (self.at_distance == 0), torch.minimum(before, self.at_distance), self.settings.levels.steps)
        levels = torch.where(forced >= 0, 0, levels)
        after = NoisyWindow(levels, self._denoise(window, drafts, committed, levels, seeds, position))
        if self.settings.nearest:
            directions = F.normalize(self.weight.to(after.embeds.dtype), dim=-1)
            drafts = torch.where(levels > 0, (after.embeds @ directions.T).argmax(-1), drafts)
        return after, drafts
