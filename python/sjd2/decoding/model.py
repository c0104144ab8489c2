"""What the loop needs of a model; adapters provide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..attention import AttentionShape
from ..cache import RaggedCache

__all__ = ["DecodableModel", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """What comes before the first image token.

    Attributes:
        embeds: ``[R, P, D]`` input embeddings, padded on the right. R is B, or 2B with guidance: the B conditional rows
            first, then their unconditional partners in the same order.
        lengths: int64 ``[R]``, at least 1: the last one of each row is the input that predicts the first image token.
    """

    embeds: torch.Tensor
    lengths: torch.Tensor

    def select(self, rows: torch.Tensor) -> Prompt:
        """Some of the model rows, int64 ``[R']``."""
        return Prompt(self.embeds[rows], self.lengths[rows])


class DecodableModel(Protocol):
    """A causal model over a slice of image ids ``0 … V−1``.

    Ids from V on are known to ``embed`` alone: structural tokens (end of line …) that the layout forces and the model never draws.
    """

    #: V, rows of the sliced output head.
    vocab_size: int

    @property
    def column_bytes(self) -> int:
        """Of one column of the cache of one model row, all layers together."""
        ...

    @property
    def input_bytes(self) -> int:
        """About what is alive inside a forward for one of its inputs, without mask and logits."""
        ...

    @property
    def item_bytes(self) -> int:
        """Of a logit."""
        ...

    @property
    def attention_shape(self) -> AttentionShape | None:
        """Of its layers, if they compute their attention by what ``cache.attention`` says; ``None``: they do it in their own way."""
        ...

    @property
    def position_limit(self) -> int | None:
        """Positions that prompt and image may take up; ``None``: any number."""
        ...

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of image and structural ids ``[B, N]``."""
        ...

    def image_embeddings(self) -> torch.Tensor:
        """Input embeddings ``[V, D]`` of all image ids."""
        ...

    def forward(self, inputs_embeds: torch.Tensor, cache: RaggedCache, *, outputs: slice = slice(None)) -> torch.Tensor:
        """Logits ``[R, W, V]`` of ``inputs_embeds [R, W, D]``, whose keys and values it appends to every layer of ``cache``.

        ``outputs`` chooses some of the W.

        Positions are the cache's, ``cache.positions(W)``, and so is what inputs see: ``sjd2.attention.attending``.
        """
        ...

    def new_cache(self, rows: int, capacity: int, kind: type[RaggedCache] = RaggedCache) -> RaggedCache:
        """An empty cache of this kind for ``rows`` model rows of ``capacity`` columns."""
        ...
