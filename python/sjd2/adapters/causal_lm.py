"""Drives an unmodified Hugging Face causal language model: its own backbone forward, and the image rows of its own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from ..attention import AttentionShape, attending
from ..cache import RaggedCache
from ..decoding import Prompt
from ..denoising import Denoising
from .base import ImageRequest
from .kept import kept
from .refusals import check_config, check_placement

__all__ = ["SlicedCausalLM", "column_bytes"]


def column_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one column of one model row, all layers."""
    shape = AttentionShape.of(config, dtype)
    return 2 * config.num_hidden_layers * shape.groups * shape.width * dtype.itemsize


def _rows(values: Any) -> set[tuple[int, ...]]:
    """The different rows of a tensor or list; of one with a single axis its values."""
    return {tuple(row.tolist()) for row in torch.as_tensor(values).reshape(len(values), -1)}


def _listed(rows: set[tuple[int, ...]]) -> str:
    return " and ".join("*".join(map(str, row)) for row in sorted(rows))


class SlicedCausalLM:
    """A ``DecodableModel`` over the ids ``image_id_start … image_id_start + vocab_size − 1`` of a causal language model.

    The head is multiplied for the image rows only: their logits do not change, the others could never be drawn.

    Args:
        model: loaded by Transformers, in whatever way: sharded, quantised.
        image_id_start, vocab_size: the image ids of the model's vocabulary.
        structural_ids: ids of the model's vocabulary that layouts force (end of line …); the n-th is the slice id ``vocab_size + n``.

    Attributes:
        denoising: what the entry ``denoising`` of the configuration's ``sjd2`` says the model was tuned with.
        stored_dtype: of the weights where they were read from.
        entries: names of the configuration's ``sjd2`` that it reads, beside ``denoising``.
        tells_images: arguments of ``generate`` that say no more than ``requested_grid`` has found, or are wrong (``told``).
        own_ids: see ``ImageRequest``.

    Raises:
        ValueError: a model whose forward the decoder cannot drive; see ``refusals``.
    """

    entries: tuple[str, ...] = ()
    tells_images: tuple[str, ...] = ()
    own_ids = False

    def __init__(self, model: PreTrainedModel, image_id_start: int, vocab_size: int, structural_ids: Sequence[int] = ()):
        self.model, self.image_id_start, self.vocab_size = model, image_id_start, vocab_size
        self.structural_ids = tuple(structural_ids)
        check_config(model.config, self.text_config)
        check_placement(model)
        entry = (getattr(model.config, "sjd2", None) or {}).get("denoising")
        self.denoising = None if entry is None else Denoising.from_config(entry)
        self.stored_dtype = model.dtype
        ids = [*range(image_id_start, image_id_start + vocab_size), *self.structural_ids] if self.structural_ids else []
        self._vocabulary_ids = torch.tensor(ids, dtype=torch.int64)
        self._compiled: Callable[..., Any] | None = None

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``: of a family whose adapter is made of a model and its processor, and says what grid a prompt asks for."""
        if processor is None:
            return None
        adapter: Any = kept(cls, model, processor)
        grids = {adapter.requested_grid(row, inputs) for row in ids}
        if None in grids:
            return None
        if len(grids) > 1:
            sizes = " and ".join(f"{rows}*{columns}" for rows, columns in sorted(grids))
            raise ValueError(f"input_ids: expected prompts of one image size, got {sizes} tokens")
        grid = grids.pop()
        for name in cls.tells_images:
            told, expected = inputs.pop(name, None), adapter.told(name, grid)
            if told is not None and expected is not None and _rows(told) != expected:
                raise ValueError(f"{name}: expected what the prompts say, rows of {_listed(expected)}, got {_listed(_rows(told))}")
        return ImageRequest(adapter, adapter.layout(len(ids), grid), adapter.unconditional_ids(ids), cls.own_ids)

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """The grid of the image that a prompt, given as ids and the other ``inputs`` of ``generate``, asks for; ``None``: it asks for none.

        A family that overrides it gets images from ``sjd2.generate``; any other is decoded over its whole vocabulary there.
        """
        return None

    def told(self, name: str, grid: tuple[int, int]) -> set[tuple[int, ...]] | None:
        """What the argument ``name`` of ``tells_images`` has for rows where ``grid`` is asked for, whatever their order; ``None``: anything."""
        return None

    def unconditional_ids(self, ids: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """See ``ImageRequest.negative_ids``."""
        return None

    @property
    def text_config(self) -> PretrainedConfig:
        """Of the decoder's layers."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def position_limit(self) -> int | None:
        """See ``DecodableModel.position_limit``."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def item_bytes(self) -> int:
        """See ``DecodableModel.item_bytes``."""
        return self.dtype.itemsize

    @property
    def column_bytes(self) -> int:
        """See ``DecodableModel.column_bytes``."""
        return column_bytes(self.text_config, self.dtype)

    @property
    def input_bytes(self) -> int:
        """See ``DecodableModel.input_bytes``: residual, attention and the two halves of the largest projection."""
        config = self.text_config
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return (8 * config.hidden_size + 3 * inner) * self.item_bytes

    @property
    def attention_shape(self) -> AttentionShape | None:
        """See ``DecodableModel.attention_shape``."""
        return AttentionShape.replaceable(self.model, self.text_config)

    @property
    def missing_decoder(self) -> str | None:
        """See ``Adapter.missing_decoder``: nothing is missing."""
        return None

    @property
    def device(self) -> torch.device:
        """Of the inputs: a trainer moves the model, and a sharded one takes them where its embedding lies."""
        weight = self._embedding.weight
        if not weight.is_meta:
            return weight.device
        # Offloaded weights are brought to where their module computes.
        place = getattr(getattr(self._embedding, "_hf_hook", None), "execution_device", None)
        return self.model.device if place is None else torch.device(place)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return self.model.dtype

    @property
    def _embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()  # type: ignore[return-value]

    def frozen_parts(self) -> list[nn.Module]:
        """See ``Adapter.frozen_parts``: a language model has none."""
        return []

    def configured_grid(self, usual: tuple[int, int]) -> tuple[int, int]:
        """The grid that the entry ``grid`` of the configuration's ``sjd2`` has, or else the ``usual`` one.

        Raises:
            ValueError: something else than rows and columns.
        """
        found = (getattr(self.model.config, "sjd2", None) or {}).get("grid") or usual
        if not isinstance(found, (list, tuple)) or len(found) != 2 or not all(type(side) is int and side > 0 for side in found):
            raise ValueError(f"adapter.grid: expected [rows, columns], whole numbers >= 1, got {found!r}")
        return found[0], found[1]

    def embed_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of ids of the whole vocabulary."""
        return self._embedding(ids)

    def vocabulary_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """Ids of the model's vocabulary for slice ids."""
        if not self.structural_ids:
            return tokens + self.image_id_start
        if self._vocabulary_ids.device != tokens.device:
            self._vocabulary_ids = self._vocabulary_ids.to(tokens.device)
        return self._vocabulary_ids[tokens]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of image and structural ids."""
        return self._embedding(self.vocabulary_ids(tokens))

    def image_embeddings(self) -> torch.Tensor:
        """See ``DecodableModel.image_embeddings``."""
        embedding = self._embedding
        if type(embedding) is nn.Embedding and type(embedding.weight) is nn.Parameter and not embedding.weight.is_meta:
            return embedding.weight[self.image_id_start : self.image_id_start + self.vocab_size]
        return self.embed(torch.arange(self.vocab_size, device=self.device))  # Gemma scales the table, peft adds to it, a plan shares it out

    def compile(self, **options: Any) -> None:
        """See ``Adapter.compile``."""
        self._compiled = torch.compile(self.model.base_model, **options)

    def forward(self, inputs_embeds: torch.Tensor, cache: RaggedCache, *, outputs: slice = slice(None)) -> torch.Tensor:
        """See ``DecodableModel.forward``."""
        window = inputs_embeds.shape[1]
        with attending(self.text_config, cache, window) as mask:
            return self.logits(inputs_embeds, mask, cache.positions(window), cache, outputs=outputs)

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
        if self.text_config._attn_implementation == "eager":  # adds the mask to the scores instead of selecting by it
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        window = cache is not None and cache.starts is not None
        body = self._compiled if window and self._compiled is not None else self.model.base_model  # every prompt has a length of its own
        hidden = body(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return self._head(hidden[:, outputs]).to(inputs_embeds.device)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, O, V]`` of the image ids for ``hidden [R, O, D]``."""
        rows = slice(self.image_id_start, self.image_id_start + self.vocab_size)
        head = self.model.get_output_embeddings()  # looked up each time: tuning changes it, and adapters of peft wrap it
        if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or head.weight.is_meta:
            return head(hidden)[..., rows]  # quantised, offloaded, wrapped or shared out: only the module itself knows how to multiply
        return F.linear(hidden.to(head.weight.device), head.weight[rows], None if head.bias is None else head.bias[rows])

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``; a model that belongs to no family takes ids only."""
        raise NotImplementedError

    def partner_ids(self, prompts: Sequence[str], negative_prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.partner_ids``: a negative prompt is written like a prompt."""
        return self.prompt_ids(negative_prompts, grid)

    def prompt(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, grid: tuple[int, int] | None = None) -> Prompt:
        """See ``Adapter.prompt``."""
        partners = [] if negative_prompts is None else self.partner_ids(prompts, negative_prompts, grid)
        return self.prompt_from_ids([*self.prompt_ids(prompts, grid), *partners])

    def prompt_from_ids(self, ids: Sequence[Sequence[int]]) -> Prompt:
        """A prompt of R model rows, each given as ids of the whole vocabulary."""
        lengths = torch.tensor([len(row) for row in ids])
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        return Prompt(self.embed_ids(padded.to(self.device)), lengths.to(self.device))

    def new_cache(self, rows: int, capacity: int, kind: type[RaggedCache] = RaggedCache) -> RaggedCache:
        """See ``DecodableModel.new_cache``."""
        return kind(self.text_config.num_hidden_layers, rows, capacity, device=self.device)
