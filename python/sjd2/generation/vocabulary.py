"""Slice ids of a model among the ids of its vocabulary."""

from __future__ import annotations

import torch

from ..adapters.causal_lm import SlicedCausalLM

__all__ = ["SliceVocabulary"]


class SliceVocabulary:
    """Implements ``slots.Vocabulary`` for the image ids of ``model``.

    Args:
        own_ids: the image ids have a vocabulary of their own; then there is nothing to convert.
    """

    def __init__(self, model: SlicedCausalLM, own_ids: bool = False):
        self.model, self.own_ids = model, own_ids
        self._slice = slice(model.image_id_start, model.image_id_start + model.vocab_size)
        rows = getattr(model.model.get_output_embeddings(), "out_features", None) or model.text_config.vocab_size
        self._size = max(rows, self._slice.stop)
        self._whole = own_ids or self._size == model.vocab_size

    def vocabulary_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """See ``slots.Vocabulary``."""
        return tokens if self.own_ids else self.model.vocabulary_ids(tokens)

    def slice_id(self, token: int) -> int:
        """Slice id of an id of the vocabulary, −1 if it has none that can be drawn."""
        start = 0 if self.own_ids else self._slice.start
        return token - start if start <= token < start + self.model.vocab_size else -1

    def allowed(self, suppressed: list[int]) -> torch.Tensor | None:
        """bool ``[V]``: ids that may be drawn; ``None``: all."""
        gone = [one for one in map(self.slice_id, suppressed) if one >= 0]
        if not gone:
            return None
        allowed = torch.ones(self.model.vocab_size, dtype=torch.bool)
        allowed[gone] = False
        return allowed

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """See ``slots.Vocabulary``."""
        if self._whole:
            return logits
        scores = logits.new_full((*logits.shape[:-1], self._size), -torch.inf)
        scores[..., self._slice] = logits
        return scores

    def cut(self, scores: torch.Tensor) -> torch.Tensor:
        """See ``slots.Vocabulary``."""
        return scores if self._whole else scores[..., self._slice]
