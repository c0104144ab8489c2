"""What there is to know of a model's attention in order to compute it in another way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["AttentionShape"]


@dataclass(frozen=True)
class AttentionShape:
    """``heads`` of queries that share ``groups`` of keys and values, all of them ``width`` wide."""

    heads: int
    groups: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> AttentionShape:
        """Of a decoder's configuration; each head has keys of its own where it does not say how many share them."""
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads, width, dtype)

    @classmethod
    def replaceable(cls, model: PreTrainedModel, config: PretrainedConfig) -> AttentionShape | None:
        """Of the decoder with this configuration in ``model``; ``None`` if its attention has to stay as it is.

        It has to where it was not asked of Transformers' interface, was asked for by another name (``eager``), or caps its scores.
        """
        if config._attn_implementation != "sdpa" or getattr(config, "attn_logit_softcapping", None):
            return None
        parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config)
        return cls.of(config, model.dtype) if any(part._supports_attention_backend for part in parts) else None
