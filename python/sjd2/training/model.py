"""Next-clean-token prediction (2510.08994) around an unmodified causal language model: the module that the stock ``Trainer`` trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from ..adapters import Adapter
from ..cache import rotary_positions
from ..denoising import EmbeddingStatistics
from ..denoising.timesteps import timestep_embeddings
from .columns import SEQUENCE, Columns, attention_mask, lay_out
from .plan import NoisePlan, TuningNoise
from .sharding import on_whole_weights, shard, share_like

__all__ = ["NextCleanTokenModel"]

Result = TypeVar("Result")


def _normal(like: torch.Tensor, seed: torch.Tensor | None) -> torch.Tensor:
    """Normal numbers, shaped like ``like [B, …]``. Those of a row come from its own seed, so that it has them in whatever batch and process it is."""
    if seed is None:
        return torch.randn_like(like)
    noise = torch.empty_like(like)
    for row, own in zip(noise, seed.tolist(), strict=True):
        row.normal_(generator=torch.Generator(like.device).manual_seed(own))
    return noise


class NextCleanTokenModel(nn.Module):
    """The loss of next-clean-token prediction.

    Every image input, clean or noisy, predicts the clean token after it. The statistics of the embeddings are those of the weights as they
    are at each step, as they are in decoding. Its state is that of the parameters that are trained: all, or those of LoRA.

    Args:
        adapter: of the model to be tuned; the model itself is trained, nothing is added to it.
        noise: where and how noise is added.
    """

    def __init__(self, adapter: Adapter, noise: TuningNoise | None = None):
        super().__init__()
        self.model, self.adapter, self.noise = adapter.model, adapter, noise or TuningNoise()

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Compute activations again instead of keeping them; as the ``Trainer`` calls it."""
        if hasattr(self.model, "activation_checkpointing_enable"):
            self.model.activation_checkpointing_enable(**options)
        else:  # Transformers before 5.2x
            self.model.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """As the ``Trainer`` of older Transformers calls it."""
        self.model.gradient_checkpointing_enable(**options)

    def shard(self, device: torch.device) -> None:
        """Keep a share of every weight in this process, on ``device``, and gather a layer's from all processes while it computes (FSDP).

        Called in each of them, before a trainer is built.
        """
        shard(self, self.model, device, self.adapter.frozen_parts(), "with_weights")

    def with_weights(self, act: Callable[[], Result]) -> Result:
        """``act()``, which decodes with the model: while it does, each process holds all weights of a model that is sharded."""
        return on_whole_weights(self, act)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The trained parameters by name, in shares if it is sharded; tied ones once, frozen ones not at all."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` gave, of a model that was sharded or not: whole tensors."""
        trained = self.state_dict()
        own = {name: share_like(value, trained[name]) if name in trained else value for name, value in state_dict.items()}
        result = super().load_state_dict(own, strict=False, assign=assign)
        result.missing_keys[:] = sorted(trained.keys() - state_dict.keys())
        if strict and (result.missing_keys or result.unexpected_keys):
            raise RuntimeError(
                f"state_dict: expected the trained parameters, got {len(result.missing_keys)} too few, {result.unexpected_keys} too many"
            )
        return result

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        tokens: torch.Tensor,
        sequence_levels: torch.Tensor,
        window_start: torch.Tensor,
        window_levels: torch.Tensor,
        noise_seed: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss, and what it is made of by level.

        Args:
            prompt_ids: int64 ``[B, P]``, padded on the left.
            prompt_mask: int64 ``[B, P]``, 1 where real.
            tokens: int64 ``[B, N]``, image tokens in slice ids, and structural ones.
            sequence_levels, window_start, window_levels: see :class:`NoisePlan`.
            noise_seed: int64 ``[B]``, of each row's noise; default: PyTorch's global generator.

        Returns:
            ``loss``: mean NLL over all predicted image tokens, in nats. ``nll`` and ``count`` ``[B, K + 1]``: its sum and the number of inputs, by
            level.
        """
        steps = self.noise.levels.steps
        columns = lay_out(prompt_mask, NoisePlan(sequence_levels, window_start, window_levels), steps if self.noise.timesteps else 0)
        logits = self.logits(prompt_ids, tokens, columns, noise_seed)
        predicting = slice(prompt_ids.shape[1] - 1, prompt_ids.shape[1] - 1 + logits.shape[1])
        target, level = tokens.gather(1, columns.target[:, predicting]), columns.level[:, predicting]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        free = (target < logits.shape[-1]).to(logits.dtype)  # the others are structural: known, and outside the head's rows
        nll = F.cross_entropy(logits.flatten(0, 1), target.clamp(max=logits.shape[-1] - 1).flatten(), reduction="none").view_as(target) * free
        sums = nll.new_zeros(len(tokens), steps + 1)
        return {
            "loss": nll.sum() / free.sum(),
            "nll": sums.scatter_add(1, level, nll.detach()),
            "count": sums.scatter_add(1, level, free),
        }

    def logits(self, prompt_ids: torch.Tensor, tokens: torch.Tensor, columns: Columns, noise_seed: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[B, C, V]`` of the C columns that predict a token: the last one of the prompt, and all image inputs in their order.

        Args:
            prompt_ids: int64 ``[B, P]``, padded on the left.
            tokens: int64 ``[B, N]``, what the columns show, noisy ones under fresh noise.
            columns: of the batch, see :func:`lay_out`.
            noise_seed: see :meth:`forward`.
        """
        width, timesteps = prompt_ids.shape[1], self.noise.levels.steps if self.noise.timesteps else 0
        image = slice(width, columns.token.shape[1] - timesteps)
        statistics = EmbeddingStatistics.of(self.adapter.image_embeddings())
        if not self.noise.normalise:
            statistics = EmbeddingStatistics.identity_like(statistics)
        embeds = self._noisy(self.adapter.embed(tokens.gather(1, columns.token[:, image])), columns.level[:, image], statistics, noise_seed)
        parts = [self.adapter.embed_ids(prompt_ids), embeds]
        if timesteps:
            parts.append(timestep_embeddings(self.noise.levels, statistics, embeds.dtype).expand(len(tokens), -1, -1))
        starts = (columns.group[:, :width] == SEQUENCE).sum(1)
        positions = rotary_positions(columns.position, starts, self.adapter.layout(1).places)
        return self.adapter.logits(torch.cat(parts, 1), attention_mask(columns), positions, outputs=slice(width - 1, image.stop))

    def _noisy(self, embeddings: torch.Tensor, levels: torch.Tensor, statistics: EmbeddingStatistics, seed: torch.Tensor | None) -> torch.Tensor:
        """``embeddings [B, C, D]`` as they are at ``levels [B, C]``: ``(1 − t)·e + t·ε`` in the normalised space, ε of ``seed [B]``."""
        time = torch.tensor(self.noise.levels.times, dtype=statistics.mean.dtype, device=embeddings.device)[levels][..., None]
        clean = statistics.normalise(embeddings)
        noisy = statistics.denormalise((1 - time) * clean + time * _normal(clean, seed), embeddings.dtype)
        return torch.where((levels > 0)[..., None], noisy, embeddings)
