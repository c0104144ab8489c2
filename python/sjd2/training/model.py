"""Next-clean-token prediction (2510.08994) around an unmodified causal language model: the module that the stock ``Trainer`` trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..adapters.causal_lm import SlicedCausalLM
from ..denoising.embedding import EmbeddingStatistics
from ..denoising.timesteps import timestep_embeddings
from .columns import SEQUENCE, Columns, attention_mask, lay_out
from .plan import NoisePlan, TuningNoise

__all__ = ["NextCleanTokenModel"]


class NextCleanTokenModel(nn.Module):
    """The loss of next-clean-token prediction.

    Every image input, clean or noisy, predicts the clean token after it. The statistics of the embeddings are those of the weights as they
    are at each step, as they are in decoding.

    Args:
        adapter: of the model to be tuned; the model itself is trained, nothing is added to it.
        noise: where and how noise is added.
    """

    def __init__(self, adapter: SlicedCausalLM, noise: TuningNoise):
        super().__init__()
        self.model, self.adapter, self.noise = adapter.model, adapter, noise

    @property
    def statistics(self) -> EmbeddingStatistics:
        """Of the embeddings; no gradient flows through them."""
        statistics = EmbeddingStatistics.of(self.adapter.image_embeddings())
        return statistics if self.noise.normalise else EmbeddingStatistics.identity_like(statistics)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As the ``Trainer`` calls it."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        tokens: torch.Tensor,
        sequence_levels: torch.Tensor,
        window_start: torch.Tensor,
        window_levels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss, and what it is made of by level.

        Args:
            prompt_ids: int64 ``[B, P]``, padded on the left.
            prompt_mask: int64 ``[B, P]``, 1 where real.
            tokens: int64 ``[B, N]``, image tokens in slice ids.
            sequence_levels, window_start, window_levels: see :class:`NoisePlan`.

        Returns:
            ``loss``: mean NLL over all predicted tokens, in nats. ``nll`` and ``count`` ``[B, K + 1]``: its sum and the number of inputs, by level.
        """
        steps = self.noise.levels.steps
        columns = lay_out(prompt_mask, NoisePlan(sequence_levels, window_start, window_levels), steps if self.noise.timesteps else 0)
        mask = attention_mask(columns)
        fed = tokens.gather(1, columns.token.clamp(min=0))
        if self.training and bool(torch.rand(()) < self.noise.stale_share):
            fed = torch.where((columns.level > 0) | (columns.group > SEQUENCE), self._own_drafts(prompt_ids, fed, columns), fed)
        logits = self._logits(prompt_ids, fed, columns, mask)
        predicted = columns.target >= 0
        target = tokens.gather(1, columns.target.clamp(min=0))
        nll = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none") * predicted
        by_level = [(columns.level == level) & predicted for level in range(steps + 1)]
        return {
            "loss": nll.sum() / predicted.sum(),
            "nll": torch.stack([(nll.detach() * where).sum(1) for where in by_level], 1),
            "count": torch.stack([where.sum(1) for where in by_level], 1),
        }

    def _logits(self, prompt_ids: torch.Tensor, fed: torch.Tensor, columns: Columns, mask: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, V]`` of every column, where ``fed [B, T]`` are the image tokens that the columns show, noisy ones under fresh noise."""
        width = prompt_ids.shape[1]
        steps = columns.group.shape[1] - width - int((columns.token[0] >= 0).sum())
        prompt = self.adapter.embed_ids(prompt_ids)
        image = self.adapter.embed(fed[:, width : fed.shape[1] - steps])
        levels = columns.level[:, width : fed.shape[1] - steps]
        noisy = self._noisy(image, torch.tensor(self.noise.levels.times, device=image.device)[levels][..., None])
        parts = [prompt, torch.where((levels > 0)[..., None], noisy, image)]
        if steps:
            timesteps = timestep_embeddings(self.noise.levels, self.statistics, image.dtype)
            parts.append(timesteps.expand(len(image), -1, -1))
        return self.adapter.logits(torch.cat(parts, 1), mask, columns.position)

    @torch.no_grad()
    def _own_drafts(self, prompt_ids: torch.Tensor, fed: torch.Tensor, columns: Columns) -> torch.Tensor:
        """A draw from the model for the token that each column shows, int64 ``[B, T]``; meaningless where a column shows none.

        It comes from the column before it in its window, for a window's first slot from the sequence, as drafts do in decoding. Half of the
        batches draw from windows of pure noise (drafts made knowing nothing of each other), the others from windows under the planned
        noise (nearly right ones).
        """
        if bool(torch.rand(()) < 0.5):
            columns = columns._replace(level=torch.where(columns.group > SEQUENCE, self.noise.levels.steps, columns.level))
        logits = self._logits(prompt_ids, fed, columns, attention_mask(columns))
        drawn = torch.distributions.Categorical(logits=logits.float()).sample()
        before = (torch.arange(drawn.shape[1], device=drawn.device) - 1).clamp(min=0).expand_as(drawn)
        first = columns.group != columns.group.gather(1, before)
        return drawn.gather(1, torch.where(first, prompt_ids.shape[1] - 1 + columns.token.clamp(min=0), before))

    def _noisy(self, embeddings: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        clean = self.statistics.normalise(embeddings)
        return self.statistics.denormalise((1 - time) * clean + time * torch.randn_like(clean), embeddings.dtype)
