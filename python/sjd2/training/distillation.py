"""Tuning on the model's own drafts: a window full of stale tokens is to predict what the finished image predicts.

Where decoding loses its time is the window behind a rejected draft: every prediction in it was made from a token that proved wrong. The
windows of the model's own decoding are recorded (``trajectories.py``), and the model learns to predict from them, slot by slot, the
distribution that the model *before tuning* has when it sees the finished tokens instead. The same frozen model is the anchor that keeps the
law of plain AR sampling where it was. Consistency models do this for text (2403.00835, with the final token as the target; here it is a
distribution, since the loop samples, and what counts is how much of it two predictions share).

No images are needed: prompts are enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sjd2_kernels import LogitsProcessing
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits

from ..adapters import Adapter
from ..denoising import EmbeddingStatistics
from .columns import lay_out
from .lora import has_lora, without_lora
from .model import NextCleanTokenModel
from .plan import NoisePlan, TuningNoise
from .sharding import shard
from .trajectories import Trajectory

__all__ = ["DraftCollator", "DraftDistillation", "DraftSettings"]


@dataclass(frozen=True)
class DraftSettings:
    """What the loss weighs, and which drafts are recorded.

    Attributes:
        clean: share of a window's slots that are clean in any case; behind a random number from there to all of them they are noisy.
        anchor: weight of the drift of the guided distribution that plain AR sampling draws from, before top-k and top-p.
        branch_anchor: weight of the drift of the conditional and unconditional distributions by themselves, at temperature 1.
        reach: slots behind a rejection over which their weight falls by e.
        guidance: lowest and highest scale that images are decoded with; default: from 1 to twice the model's own.
        pool: images whose drafts are kept, the newest.
        first: images recorded before the first step.
        renewed, every: so many new images after every so many steps.

    Raises:
        ValueError: a number out of its range.
    """

    clean: float = 0.5
    anchor: float = 6.0
    branch_anchor: float = 1.0
    reach: float = 8.0
    guidance: tuple[float, float] | None = None
    pool: int = 1024
    first: int = 256
    renewed: int = 64
    every: int = 100

    def __post_init__(self) -> None:
        for name in ("pool", "first", "renewed", "every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        if not 0 <= self.clean <= 1:
            raise ValueError(f"clean: expected a share in [0, 1], got {self.clean!r}")
        for name in ("anchor", "branch_anchor"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if not (math.isfinite(self.reach) and self.reach > 0):
            raise ValueError(f"reach: expected a number > 0, got {self.reach!r}")
        if self.first > self.pool or self.renewed > self.pool:
            raise ValueError(f"first, renewed: expected at most pool = {self.pool}, got {self.first} and {self.renewed}")
        if self.guidance is not None and not (len(self.guidance) == 2 and 0 < self.guidance[0] <= self.guidance[1] <= 1e6):
            raise ValueError(f"guidance: expected 0 < lowest <= highest, got {self.guidance!r}")


class DraftCollator:
    """Trajectories to batches for :class:`DraftDistillation`; what is drawn for one comes from its seed.

    Args:
        adapter: of the model.
        noise: how many windows of how many slots, and how their levels rise.
        settings: see :class:`DraftSettings`.

    Raises:
        ValueError: a layout without windows, or windows longer than half an image: too few would fit behind what is committed.
    """

    def __init__(self, adapter: Adapter, noise: TuningNoise, settings: DraftSettings):
        self.adapter, self.noise, self.settings = adapter, noise, settings
        self.structural = (adapter.layout(1).forced[0] >= 0).cpu()
        if noise.layout != "windows":
            raise ValueError(f"layout: own drafts are tuned on in windows, got {noise.layout}")
        if noise.window > len(self.structural) // 2:
            raise ValueError(f"window: expected at most {len(self.structural) // 2}, half of an image's tokens, got {noise.window}")

    def _window(self, trajectory: Trajectory, slots: int, generator: torch.Generator) -> tuple[int, int, torch.Tensor]:
        """First token, first token behind the rejection, and drafts of a random window of which all slots lie in the image.

        An image of a few forwards may have none; then what is returned has no slot behind a rejection, and no weight.
        """
        committed = trajectory.committed.tolist()
        usable = [i for i in range(len(trajectory.drafts)) if committed[i] + slots < len(trajectory.tokens)]
        if not usable:
            return 0, len(trajectory.tokens), trajectory.tokens[:slots].long()
        i = usable[int(torch.randint(len(usable), (), generator=generator))]
        return committed[i], committed[i + 1], trajectory.drafts[i, :slots].long()

    def _levels(self, slots: int, generator: torch.Generator) -> torch.Tensor:
        noise = self.noise
        clean = torch.randint(math.ceil(self.settings.clean * slots), slots + 1, (noise.windows, 1), generator=generator)
        low, high = noise.segment
        ends = torch.randint(low, high + 1, (noise.windows, noise.levels.steps), generator=generator).cumsum(1)
        behind = (torch.arange(slots) - clean).clamp(min=0).contiguous()
        rising = torch.searchsorted(ends, behind, right=True) + 1
        return rising.clamp(max=noise.levels.steps).masked_fill(torch.arange(slots) < clean, 0)

    def __call__(self, examples: Sequence[Trajectory]) -> dict[str, Any]:
        """One batch, by the names of the arguments of ``DraftDistillation.forward``."""
        captions = [example.prompt for example in examples]
        negative = [self.adapter.defaults.negative_prompt] * len(captions)
        prompts = [torch.tensor(ids) for ids in [*self.adapter.prompt_ids(captions), *self.adapter.partner_ids(captions, negative)]]
        slots = min(self.noise.window, examples[0].drafts.shape[1])
        generators = [torch.Generator().manual_seed(example.seed) for example in examples]
        windows = [
            [self._window(example, slots, generator) for _ in range(self.noise.windows)]
            for example, generator in zip(examples, generators, strict=True)
        ]
        start = torch.tensor([[first for first, _, _ in row] for row in windows])
        fed = start[..., None] + torch.arange(slots)
        levels = torch.stack([self._levels(slots, generator) for generator in generators])
        return {
            "prompt_ids": pad_sequence(prompts, batch_first=True, padding_side="left"),
            "prompt_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True, padding_side="left"),
            "tokens": torch.stack([example.tokens.long() for example in examples]),
            "guidance_scale": torch.tensor([example.guidance_scale for example in examples]),
            "start": start,
            "resumed": torch.tensor([[behind for _, behind, _ in row] for row in windows]),
            "drafts": torch.stack([torch.stack([drafts for _, _, drafts in row]) for row in windows]),
            "levels": levels.masked_fill(self.structural[fed], 0),
            "free": ~self.structural[fed + 1],
            "noise_seed": torch.stack([torch.randint(2**62, (), generator=generator) for generator in generators]),
        }


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1e-9)


class DraftDistillation(NextCleanTokenModel):
    """The loss; see the module.

    Args:
        adapter: of the model that is tuned.
        noise: of decoding.
        teacher: of the same model before tuning, frozen; ``None`` if the model has LoRA, without which it is its own teacher.
        settings: see :class:`DraftSettings`.

    Raises:
        ValueError: neither a teacher nor LoRA.
    """

    def __init__(self, adapter: Adapter, noise: TuningNoise, teacher: Adapter | None = None, settings: DraftSettings | None = None):
        super().__init__(adapter, noise)
        if teacher is None and not has_lora(self.model):
            raise ValueError("teacher: expected a frozen copy of the model, got none, and the model has no LoRA to be without")
        self.settings = settings or DraftSettings()
        frozen = NextCleanTokenModel(teacher or adapter, TuningNoise(timesteps=False))
        self._teacher = [frozen]  # a list: nn.Module would take it for a part of itself
        self._own_teacher = teacher is None

    @property
    def teacher(self) -> NextCleanTokenModel:
        """The model before tuning; with LoRA its weights are this one's."""
        return self if self._own_teacher else self._teacher[0]

    def shard(self, device: torch.device) -> None:
        """See :meth:`NextCleanTokenModel.shard`; the teacher is sharded as well."""
        super().shard(device)
        if not self._own_teacher:
            frozen = self._teacher[0]
            shard(frozen, frozen.model, device, frozen.adapter.frozen_parts(), "logits", "with_weights")

    def _noisy(self, embeddings: torch.Tensor, levels: torch.Tensor, statistics: EmbeddingStatistics, seed: torch.Tensor | None) -> torch.Tensor:
        # Conditional and unconditional rows share their noise, as in decoding.
        half = len(embeddings) // 2
        return super()._noisy(embeddings[:half], levels[:half], statistics, seed).repeat(2, 1, 1)

    def _image_logits(self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[2B, N, V]`` of the model before tuning."""
        rows = len(prompt_ids)
        clean = tokens.new_zeros(rows, tokens.shape[1] - 1)
        nothing = NoisePlan(clean, clean[:, :0], clean[:, :0, None])
        with torch.no_grad(), without_lora(self.model) if self._own_teacher else nullcontext():
            return self._teacher[0].logits(prompt_ids, tokens.repeat(2, 1), lay_out(prompt_mask, nothing, 0))

    def window_logits(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        tokens: torch.Tensor,
        start: torch.Tensor,
        drafts: torch.Tensor,
        levels: torch.Tensor,
        noise_seed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[2B, N, V]`` of finished images, and ``[2B, M, S, V]`` of windows of drafts beside them; see :meth:`forward`."""
        count, slots = tokens.shape[1], levels.shape[1:]
        clean = tokens.new_zeros(len(prompt_ids), count - 1)
        plan = NoisePlan(clean, start.repeat(2, 1), levels.repeat(2, 1, 1))
        columns = lay_out(prompt_mask, plan, self.noise.levels.steps if self.noise.timesteps else 0)
        # A window's columns show its drafts, which stand behind the image's own tokens.
        first = prompt_ids.shape[1] + count - 1
        shown = columns.token.clone()
        shown[:, first : first + slots.numel()] = count + torch.arange(slots.numel(), device=shown.device)
        logits = self.logits(prompt_ids, torch.cat([tokens, drafts.flatten(1)], 1).repeat(2, 1), columns._replace(token=shown), noise_seed)
        return logits[:, :count], logits[:, count:].unflatten(1, slots)

    def forward(  # type: ignore[override]
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        tokens: torch.Tensor,
        guidance_scale: torch.Tensor,
        start: torch.Tensor,
        resumed: torch.Tensor,
        drafts: torch.Tensor,
        levels: torch.Tensor,
        free: torch.Tensor,
        noise_seed: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss and what it is made of.

        Args:
            prompt_ids, prompt_mask: int64 ``[2B, P]``, padded on the left; conditional rows, then unconditional ones.
            tokens: int64 ``[B, N]``, finished images.
            guidance_scale: ``[B]``.
            start: int64 ``[B, M]``, tokens that are final before each window.
            resumed: int64 ``[B, M]``, tokens that are final after it: its slots from there on were drafted beside a token that was then rejected.
            drafts: int64 ``[B, M, S]``, what its slots hold.
            levels: int64 ``[B, M, S]``, their noise levels.
            free: bool ``[B, M, S]``, whether the token that a slot predicts is free, not structural.
            noise_seed: int64 ``[B]``, of each image's noise; default: PyTorch's global generator.

        Returns:
            ``loss``; ``overlap [B]``: Σ min(p, q) of stale and true predictions behind a rejection, which is the chance to keep a draft (NaN for a
            row without a rejection); ``drift [B]``: KL divergence of the guided distribution at the sampling temperature, before top-k and
            top-p, from what it was before tuning, in nats per token that is drawn.
        """
        settings = self.settings
        true = self._image_logits(prompt_ids, prompt_mask, tokens).float()
        p = self._target(true, guidance_scale)
        found = self.window_logits(prompt_ids, prompt_mask, tokens, start, drafts, levels, noise_seed)
        image, slots = (logits.float() for logits in found)
        guided, stale = self._guided(image, guidance_scale), self._guided(slots, guidance_scale)

        place = start[..., None] + 1 + torch.arange(drafts.shape[-1], device=start.device)  # of the token that each slot predicts
        behind = place - resumed[..., None]
        weight = ((behind >= 0) & free) * torch.exp(-behind.clamp(min=0) / settings.reach)
        wanted = p[torch.arange(len(p), device=p.device)[:, None, None], place]
        log_q = stale.log_softmax(-1)
        overlap = torch.minimum(wanted, log_q.exp()).sum(-1)
        # Cross-entropy teaches where the mass is, the overlap what decoding is paid for; the factor makes their gradients alike in size.
        prediction = 0.5 * _mean(-(wanted * log_q).sum(-1), weight) + 2 * (1 - _mean(overlap, weight))

        drawn = (tokens < image.shape[-1]).to(image.dtype)  # nothing is sampled where a structural token stands
        drift = F.kl_div(guided.log_softmax(-1), self._guided(true, guidance_scale).log_softmax(-1), reduction="none", log_target=True).sum(-1)
        branches = F.kl_div(image.log_softmax(-1), true.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return {
            "loss": prediction + settings.anchor * _mean(drift, drawn) + settings.branch_anchor * _mean(branches, drawn.repeat(2, 1)),
            "overlap": (overlap.detach() * weight).sum((1, 2)) / weight.sum((1, 2)),
            "drift": (drift.detach() * drawn).sum(1) / drawn.sum(1),
        }

    def _guided(self, logits: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
        cond, uncond = logits.chunk(2)
        scale = guidance_scale.view(-1, *[1] * (logits.ndim - 1))
        return (uncond + scale * (cond - uncond)) / self.adapter.defaults.temperature

    def _target(self, logits: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
        """What AR sampling draws from, ``[B, N, V]``."""
        cond, uncond = logits.chunk(2)
        defaults = self.adapter.defaults
        processing = LogitsProcessing.create(
            len(cond),
            guidance_scale=guidance_scale.tolist(),
            temperature=defaults.temperature,
            top_k=defaults.top_k,
            top_p=defaults.top_p,
            device=logits.device,
        )
        z = scaled_logits(cond, uncond, processing)
        return log_probabilities(z, row_statistics(z, processing)).exp()
