"""What SJD2 adds to the loop: slots that are born as noise and are denoised as they come nearer to the front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from sjd2_kernels import denoise

from .embedding import EmbeddingStatistics
from .levels import window_levels
from .settings import Denoising
from .timesteps import timestep_embeddings

__all__ = ["Denoiser", "NoisyWindow"]


class _Embeddings(Protocol):
    def image_embeddings(self) -> torch.Tensor: ...

    def embed(self, tokens: torch.Tensor) -> torch.Tensor: ...


@dataclass
class NoisyWindow:
    """Of the slots of B windows: ``levels`` int64 ``[B, W]`` (0: clean) and the ``embeds [B, W, D]`` that they are fed."""

    levels: torch.Tensor
    embeds: torch.Tensor


class Denoiser:
    """Denoising of one run, see ``Denoising``."""

    def __init__(self, settings: Denoising, window: int, model: _Embeddings, device: torch.device, *, structural: bool = False):
        self.settings, self.weight = settings, model.image_embeddings()
        self.embed_structural = model.embed if structural else None
        statistics = EmbeddingStatistics.of(self.weight)
        self.statistics = statistics if settings.normalise else EmbeddingStatistics.identity_like(statistics)
        self.times = torch.tensor(settings.levels.times, dtype=statistics.mean.dtype, device=device)
        self.at_distance = window_levels(window, settings.levels.steps, clean=settings.clean_slots(window), per_level=settings.per_level).to(device)
        self.born = torch.where(self.at_distance == 0, 0, settings.levels.steps)
        self.directions = F.normalize(self.weight.to(statistics.mean.dtype), dim=-1) if settings.nearest else None
        self.timesteps = timestep_embeddings(settings.levels, self.statistics, self.weight.dtype)[: settings.timestep_tokens(window)]

    def _denoise(
        self, before: NoisyWindow, drafts: torch.Tensor, committed: torch.Tensor, levels: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor
    ) -> NoisyWindow:
        image_ids = len(self.weight)
        embeds = denoise(
            before.embeds,
            self.weight,
            self.statistics.mean,
            self.statistics.std,
            tokens=drafts if self.embed_structural is None else drafts.masked_fill(drafts >= image_ids, 0),
            committed=committed,
            levels=self.times[before.levels],
            next_levels=self.times[levels],
            seeds=seeds,
            position=position,
        )
        if self.embed_structural is not None:  # ids that the table has no row of; their slots are clean
            embeds = torch.where((drafts >= image_ids)[..., None], self.embed_structural(drafts), embeds)
        return NoisyWindow(levels, embeds)

    def begin(self, drafts: torch.Tensor, forced: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor) -> NoisyWindow:
        """The first window: slots behind the clean ones are noise, unless they are structural.

        Args:
            drafts, forced: int64 ``[B, W]``.
            seeds, position: int64 ``[B]``; slot 0 is at ``position``.
        """
        levels = torch.where(forced >= 0, 0, self.born)
        nothing = NoisyWindow(levels, self.weight.new_empty(*drafts.shape, self.weight.shape[1]))
        return self._denoise(nothing, drafts, torch.full_like(position, drafts.shape[1]), levels, seeds, position)

    def inputs(self, window: NoisyWindow) -> torch.Tensor:
        """Inputs ``[B, W − 1 + K, D]`` behind the newest committed token: slots 0 … W−2 and the timestep tokens."""
        return torch.cat([window.embeds[:, :-1], self.timesteps.expand(len(window.embeds), -1, -1)], dim=1)

    def input_levels(self, window: NoisyWindow) -> torch.Tensor | None:
        """Levels ``[B, W]`` of the newest committed token and slots 0 … W−2, which decide who sees which timestep token; ``None`` without those."""
        if not len(self.timesteps):
            return None
        return torch.cat([torch.zeros_like(window.levels[:, :1]), window.levels[:, :-1]], dim=1)

    def step(
        self, window: NoisyWindow, drafts: torch.Tensor, committed: torch.Tensor, forced: torch.Tensor, seeds: torch.Tensor, position: torch.Tensor
    ) -> tuple[NoisyWindow, torch.Tensor]:
        """Shift the window over ``committed [B]`` tokens and bring every slot to the level of its distance, toward the embedding of its draft.

        Args:
            drafts: int64 ``[B, W]`` of the next window, whose slot 0 is at ``position [B]``.
            forced: int64 ``[B, W]``: structural slots of the next window are clean.

        Returns:
            The next window, and its drafts: with ``nearest`` those of noisy slots change.
        """
        source = torch.arange(drafts.shape[1], device=drafts.device) + committed[:, None]
        survives = source < drafts.shape[1]
        before = window.levels.gather(1, source.clamp(max=drafts.shape[1] - 1))
        levels = torch.where(survives, torch.minimum(before, self.at_distance), self.born)
        levels = torch.where(forced >= 0, 0, levels)
        after = self._denoise(window, drafts, committed, levels, seeds, position)
        if self.directions is not None:
            nearest = (after.embeds.to(self.directions.dtype) @ self.directions.T).argmax(-1)
            drafts = torch.where(levels > 0, nearest, drafts)
        return after, drafts
