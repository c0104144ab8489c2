"""Drives a stock Llama-type Hugging Face language model: its own backbone forward, and the image rows of its own head."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from ..cache import RaggedCache
from ..denoising import Denoising

__all__ = ["SlicedCausalLM"]


def _check_config(config: PretrainedConfig) -> None:
    """Refuse what the head's product alone, or one mask for all layers, would get wrong."""
    for field in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ValueError(f"model: expected logits that are the head's product, got {field} = {getattr(config, field)}")
    layers = getattr(config, "layer_types", None) or ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    others = sorted(set(layers) - {"full_attention"})
    if others:
        raise ValueError(f"model: expected full attention in every layer, got {', '.join(others)}")


class SlicedCausalLM:
    """A ``DecodableModel`` over the ids ``image_id_start … image_id_start + vocab_size − 1`` of a causal language model.

    The head is multiplied for the image rows only: their logits do not change, the others could never be drawn.

    Attributes:
        denoising: what the entry ``denoising`` of the configuration's ``sjd2`` says the model was tuned with.
        stored_dtype: of the weights where they were read from.
    """

    def __init__(self, model: PreTrainedModel, image_id_start: int, vocab_size: int):
        attention = model.config._attn_implementation
        if attention not in ("sdpa", "eager"):  # FlashAttention takes no mask, and a ragged window needs one
            raise ValueError(f"model: expected attn_implementation sdpa or eager, got {attention}")
        _check_config(model.config.get_text_config(decoder=True))
        self.model, self.image_id_start, self.vocab_size = model, image_id_start, vocab_size
        entry = (getattr(model.config, "sjd2", None) or {}).get("denoising")
        self.denoising = None if entry is None else Denoising.from_config(entry)
        self.stored_dtype = model.dtype
        self._embedding = model.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Of the model: a trainer moves it."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return self.model.dtype

    def embed_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of ids of the whole vocabulary."""
        return self._embedding(ids)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of image tokens."""
        return self._embedding(tokens + self.image_id_start)

    def image_embeddings(self) -> torch.Tensor:
        """See ``DecodableModel.image_embeddings``."""
        weight: torch.Tensor = self._embedding.weight  # type: ignore[assignment]
        return weight[self.image_id_start : self.image_id_start + self.vocab_size]

    def forward(self, inputs_embeds: torch.Tensor, cache: RaggedCache) -> torch.Tensor:
        """See ``DecodableModel.forward``."""
        window = inputs_embeds.shape[1]
        return self.logits(inputs_embeds, cache.mask(window), cache.positions(window), cache)

    def logits(
        self,
        inputs_embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: RaggedCache | None = None,
        *,
        outputs: slice = slice(None),
    ) -> torch.Tensor:
        """See ``Adapter.logits``; the head is multiplied for ``outputs`` only."""
        if self.model.config._attn_implementation == "eager":  # adds the mask to the scores instead of selecting by it
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        hidden = self.model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        # Looked up each time: tuning changes the head, and adapters of peft wrap it.
        rows = slice(self.image_id_start, self.image_id_start + self.vocab_size)
        head = self.model.get_output_embeddings()
        return F.linear(hidden[:, outputs], head.weight[rows], None if head.bias is None else head.bias[rows])

    def new_cache(self, rows: int, capacity: int, kind: type[RaggedCache] = RaggedCache) -> RaggedCache:
        """See ``DecodableModel.new_cache``."""
        config = self.model.config.get_text_config(decoder=True)
        limit = config.max_position_embeddings
        if capacity > limit:
            raise ValueError(f"window: prompt, image and window together need {capacity} positions, the model has {limit}; use a smaller window")
        return kind(config.num_hidden_layers, rows, capacity, device=self.device)
