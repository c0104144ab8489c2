"""Tuning on the model's own drafts: a window full of stale tokens is to predict what the finished image predicts.

Where decoding loses its time is the window behind a rejected draft: every prediction in it was made from a token that proved wrong. The
windows of the model's own decoding are recorded (``trajectories.py``), and the model learns to predict from them, slot by slot, the
distribution that the model *before tuning* has when it sees the finished tokens instead. The same frozen model is the anchor that keeps the
law of plain AR sampling where it was. Consistency models do this for text (2403.00835, with the final token as the target; here it is a
distribution, since the loop samples, and what counts is how much of it two predictions share).

No images are needed: prompts are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sjd2_kernels import LogitsProcessing
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits

from ..adapters.causal_lm import SlicedCausalLM
from ..denoising import EmbeddingStatistics, NoiseLevels
from ..denoising.timesteps import timestep_embeddings
from .columns import attention_mask, lay_out
from .plan import NoisePlan
from .trajectories import Trajectory

__all__ = ["DraftCollator", "DraftDistillation", "DraftSettings"]


@dataclass(frozen=True)
class DraftSettings:
    """How windows are taken from trajectories, and what the loss weighs.

    Attributes:
        levels: noise levels of decoding.
        windows: windows beside each finished image.
        window: slots of each that are fed.
        clean_run: fewest slots of a window that are clean; behind a random number from there to all of them the slots are noisy.
        per_level: slots of each noise level.
        temperature, top_k, top_p: of the distributions that are compared, as in sampling.
        anchor: weight of the drift of the guided distribution that plain AR sampling draws from.
        branch_anchor: weight of the drift of the conditional and unconditional distributions by themselves, without processing.
        reach: slots behind a rejection over which their weight falls by e.
    """

    levels: NoiseLevels
    windows: int = 6
    window: int = 24
    clean_run: int = 12
    per_level: int = 3
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    anchor: float = 4.0
    branch_anchor: float = 1.0
    reach: float = 8.0


class DraftCollator:
    """Trajectories to batches for :class:`DraftDistillation`; windows are drawn from PyTorch's global CPU generator."""

    def __init__(self, text: PreTrainedTokenizerBase, settings: DraftSettings):
        self.text, self.settings = text, settings

    def _window(self, trajectory: Trajectory) -> tuple[int, int, torch.Tensor]:
        """First slot, first slot behind the rejection, and drafts of a random window that holds S slots which are fed."""
        committed, size, last = trajectory.committed.tolist(), self.settings.window, len(trajectory.tokens) - 1
        usable = [i for i, place in enumerate(committed[:-1]) if place + size <= last]
        i = usable[int(torch.randint(len(usable), ()))] if usable else 0
        drafts = trajectory.drafts[i, :size].long() if len(trajectory.drafts) else trajectory.tokens[:size].long()
        return committed[i], committed[min(i + 1, len(committed) - 1)], drafts

    def _levels(self) -> torch.Tensor:
        settings = self.settings
        clean = torch.randint(settings.clean_run, settings.window + 1, (settings.windows, 1))
        behind = torch.arange(settings.window) - clean
        return torch.where(behind < 0, 0, behind.div(settings.per_level, rounding_mode="floor") + 1).clamp(max=settings.levels.steps)

    def __call__(self, examples: Sequence[Trajectory]) -> dict[str, Any]:
        """Two rows of prompts per example, all conditional ones first; the rest by example."""
        prompt = self.text([*(e.prompt for e in examples), *[""] * len(examples)], padding=True, padding_side="left", return_tensors="pt")
        windows = [[self._window(example) for _ in range(self.settings.windows)] for example in examples]
        return {
            "prompt_ids": prompt["input_ids"],
            "prompt_mask": prompt["attention_mask"],
            "tokens": torch.stack([example.tokens.long() for example in examples]),
            "guidance_scale": torch.tensor([example.guidance_scale for example in examples]),
            "start": torch.tensor([[first for first, _, _ in row] for row in windows]),
            "resumed": torch.tensor([[next_ for _, next_, _ in row] for row in windows]),
            "drafts": torch.stack([torch.stack([drafts for _, _, drafts in row]) for row in windows]),
            "levels": torch.stack([self._levels() for _ in examples]),
        }


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1e-9)


class DraftDistillation(nn.Module):
    """The loss; see the module.

    Args:
        adapter: of the model that is tuned.
        teacher: of the same model before tuning, frozen; not part of the module's parameters.
        settings: see ``DraftSettings``.
    """

    def __init__(self, adapter: SlicedCausalLM, teacher: SlicedCausalLM, settings: DraftSettings):
        super().__init__()
        self.model, self.adapter, self.settings = adapter.model, adapter, settings
        self._teacher = [teacher]  # a list: nn.Module would take it for a part of itself

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As the ``Trainer`` calls it."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def _logits(
        self,
        adapter: SlicedCausalLM,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        batch: dict[str, torch.Tensor] | None,
        tokens: torch.Tensor,
    ):
        """Logits ``[2B, N, V]`` of the finished image and, with a ``batch`` of windows, ``[2B, M, S, V]`` of their slots."""
        rows, count = len(prompt_ids), tokens.shape[1]
        parts = [adapter.embed_ids(prompt_ids), adapter.embed(tokens[:, :-1]).repeat(2, 1, 1)]
        clean = torch.zeros(rows, count - 1, dtype=torch.int64, device=tokens.device)
        levels = self.settings.levels
        if batch is None:
            none = clean[:, :0]
            plan, steps = NoisePlan(clean, none, none[..., None]), 0
        else:
            window_levels = batch["levels"].repeat(2, 1, 1)
            plan, steps = NoisePlan(clean, batch["start"].repeat(2, 1), window_levels), levels.steps
            statistics = EmbeddingStatistics.of(adapter.image_embeddings())
            fed = adapter.embed(batch["drafts"].flatten(1))
            time = torch.tensor(levels.times, device=fed.device)[batch["levels"].flatten(1)][..., None]
            normal = statistics.normalise(fed)
            noisy = statistics.denormalise((1 - time) * normal + time * torch.randn_like(normal), fed.dtype)
            parts += [torch.where(time > 0, noisy, fed).repeat(2, 1, 1), timestep_embeddings(levels, statistics, fed.dtype).expand(rows, -1, -1)]
        columns = lay_out(prompt_mask, plan, steps)
        logits = adapter.logits(torch.cat(parts, 1), attention_mask(columns), columns.position).float()
        prompt = prompt_ids.shape[1]
        image = logits[:, prompt - 1 : prompt - 1 + count]
        if batch is None:
            return image, None
        slots = batch["levels"].shape[1:]
        return image, logits[:, prompt - 1 + count :][:, : slots.numel()].unflatten(1, slots)

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        tokens: torch.Tensor,
        guidance_scale: torch.Tensor,
        start: torch.Tensor,
        resumed: torch.Tensor,
        drafts: torch.Tensor,
        levels: torch.Tensor,
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

        Returns:
            ``loss``; ``overlap [B]``: Σ min(p, q) of stale and true predictions behind a rejection, which is the chance to keep a draft;
            ``drift [B]``: KL divergence of the distribution of AR sampling from that before tuning, in nats per token.
        """
        settings = self.settings
        batch = {"start": start, "drafts": drafts, "levels": levels}
        with torch.no_grad():
            true, _ = self._logits(self._teacher[0], prompt_ids, prompt_mask, None, tokens)
            p = self._target(true, guidance_scale)
        image, slots = self._logits(self.adapter, prompt_ids, prompt_mask, batch, tokens)
        assert slots is not None
        guided, stale = self._guided(image, guidance_scale), self._guided(slots, guidance_scale)

        place = start[..., None] + 1 + torch.arange(drafts.shape[-1], device=start.device)  # of the token that each slot predicts
        behind = place - resumed[..., None]
        weight = ((behind >= 0) & (place < tokens.shape[1])) * torch.exp(-behind.clamp(min=0) / settings.reach)
        wanted = p[torch.arange(len(p), device=p.device)[:, None, None], place.clamp(max=tokens.shape[1] - 1)]
        log_q = stale.log_softmax(-1)
        overlap = torch.minimum(wanted, log_q.exp()).sum(-1)
        prediction = _mean(-(wanted * log_q).sum(-1), weight) + 4 * (1 - _mean(overlap, weight))

        drift = F.kl_div(guided.log_softmax(-1), p, reduction="none").sum(-1)
        branches = F.kl_div(image.log_softmax(-1), true.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        loss = prediction / 2 + settings.anchor * drift.mean() + settings.branch_anchor * branches.mean()
        per_row = (overlap.detach() * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-9)
        return {"loss": loss, "overlap": per_row, "drift": drift.detach().mean(1)}

    def _guided(self, logits: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
        cond, uncond = logits.chunk(2)
        scale = guidance_scale.view(-1, *[1] * (logits.ndim - 1))
        return (uncond + scale * (cond - uncond)) / self.settings.temperature

    def _target(self, logits: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
        """What AR sampling draws from, ``[B, N, V]``."""
        cond, uncond = logits.chunk(2)
        settings = self.settings
        processing = LogitsProcessing.create(
            len(cond),
            guidance_scale=guidance_scale.tolist(),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            device=logits.device,
        )
        z = scaled_logits(cond, uncond, processing)
        return log_probabilities(z, row_statistics(z, processing)).exp()
