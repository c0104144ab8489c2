"""A call of ``generate`` in the decoder's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from ..adapters import ImageRequest
from ..adapters.causal_lm import SlicedCausalLM
from ..adapters.refusals import check_config
from ..adapters.registry import adapter_class, has_family
from ..decoding import Prompt, TokenLayout
from .folding import Guidance, Sampling, fold
from .inputs import Ends, check_rest, check_vocabulary, left_padded_rows, prompt_mask, read_ends
from .whole import check_once, whole_vocabulary

__all__ = ["Call", "read_call"]


@dataclass(frozen=True)
class Call:
    """What to decode, and how.

    Attributes:
        model, layout, own_ids: see ``adapters.ImageRequest``; without an image the model's whole vocabulary.
        free: whether there is no image, and a row may have any length.
        prompt: B model rows, or 2B with guidance.
        input_ids: int64 ``[B, P]`` as ``generate`` was given them.
        sampling, ends: what processors and stopping criteria became.
        pad_id: behind the end of a row.
        as_dict: whether more than the tokens is asked for.
    """

    model: SlicedCausalLM
    layout: TokenLayout
    own_ids: bool
    free: bool
    prompt: Prompt
    input_ids: torch.Tensor
    sampling: Sampling
    ends: Ends
    pad_id: int
    as_dict: bool

    @property
    def longest(self) -> int:
        """Tokens that a row may have."""
        return self.layout.forced.shape[1]

    def within_positions(self) -> Call:
        """Rows cut to what the model has positions for, where more are asked for than it has."""
        before, limit = self.prompt.embeds.shape[1] - 1, self.model.position_limit
        if not self.free or limit is None or before + self.longest <= limit:
            return self
        length = max(1, limit - before)
        return replace(self, layout=replace(self.layout, forced=self.layout.forced[:, :length], lengths=self.layout.lengths.clamp(max=length)))


def read_call(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    inputs: Mapping[str, Any],
    processor: Any,
    mode: str | None,
    told: Mapping[str, Any],
) -> Call:
    """Read what Hugging Face prepared; ``inputs`` are what is left for the model of what it was ``told``.

    Raises:
        ValueError: see ``generate``.
    """
    check_config(model.config, model.config.get_text_config(decoder=True))
    inputs = dict(inputs) if mode is None else {**inputs, "generation_mode": mode}
    sampling = fold(processors, greedy=not config.do_sample)
    ends = read_ends(criteria, input_ids.shape[1])
    embeds = inputs.get("inputs_embeds")
    mask = prompt_mask(input_ids if embeds is None else embeds, inputs.get("attention_mask"))
    ids = left_padded_rows(input_ids, mask) if embeds is None else None
    check_vocabulary("input_ids", ids or [], model)
    images = _images(model, ids, inputs, processor, told)
    request = images or _tokens(model, ids, len(mask), ends.length, processor)
    check_rest(inputs, mask)
    if request.own_ids:  # whose length and end ids are those of text
        ends = replace(ends, length=request.layout.forced.shape[1], ids=())
    layout = replace(request.layout, lengths=request.layout.lengths.clamp(max=ends.length))
    prompt = _embedded(request.model, ids, embeds, mask)
    if sampling.guidance is not None:
        negative = _negative_ids(sampling.guidance, request.negative_ids, ids, len(mask))
        check_vocabulary("negative_prompt_ids", negative, model)
        prompt = _both(prompt, request.model.prompt_from_ids(negative))
    pad_id = config.pad_token_id if config.pad_token_id is not None else next(iter(ends.ids), 0)
    return Call(
        request.model, layout, request.own_ids, images is None, prompt, input_ids, sampling, ends, int(pad_id), bool(config.return_dict_in_generate)
    )


def _images(
    model: PreTrainedModel, ids: list[list[int]] | None, inputs: dict[str, Any], processor: Any, told: Mapping[str, Any]
) -> ImageRequest | None:
    """The images asked for, where the model's family has an adapter that finds them in the prompts."""
    if ids is None or inputs.get("generation_mode") == "text":
        inputs.pop("generation_mode", None)
        return None
    try:
        family = adapter_class(model.config)
    except ValueError:
        return None
    known = {**{name: told[name] for name in family.tells_images if name in told}, **inputs}
    request = family.requested(model, ids, known, processor)
    for name in inputs.keys() - known.keys():
        del inputs[name]
    return request


def _tokens(model: PreTrainedModel, ids: list[list[int]] | None, batch: int, length: int, processor: Any) -> ImageRequest:
    """Any ``length`` tokens of the vocabulary."""
    adapter = whole_vocabulary(model)
    try:
        check_once(adapter, range(min(adapter.vocab_size, 64)) if ids is None else ids[0])
    except ValueError as error:
        if has_family(model.config):
            why = (
                "give the model's own, to find the image that a prompt asks for"
                if processor is None
                else "it found no image asked for in the prompts"
            )
            raise ValueError(f"processor: {why}; as a model of words: {error}") from error
        raise
    free = torch.full((1, length), -1, device=adapter.device).expand(batch, -1)
    return ImageRequest(adapter, TokenLayout(free, torch.full((batch,), length, device=adapter.device)))


def _embedded(model: SlicedCausalLM, ids: list[list[int]] | None, embeds: torch.Tensor | None, mask: torch.Tensor) -> Prompt:
    if ids is not None:
        return model.prompt_from_ids(ids)
    assert embeds is not None
    rows = [row[keep] for row, keep in zip(embeds.to(model.device), mask.to(model.device), strict=True)]
    return Prompt(nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows], device=model.device))


def _negative_ids(guidance: Guidance, usual: list[list[int]] | None, ids: list[list[int]] | None, batch: int) -> list[list[int]]:
    """Ids of the unconditional branch, a row per prompt.

    Raises:
        ValueError: rows that belong to no prompts, or nothing to take them from.
    """
    given = guidance.negative_ids
    if given is None:
        if usual is not None:
            return usual
        if ids is None:
            raise ValueError("negative_prompt_ids: expected ids, because guidance_scale is not 1 and the prompt is embeddings, got None")
        return [row[-1:] for row in ids]
    if not len(given) or batch % len(given):
        raise ValueError(f"negative_prompt_ids: expected {batch} rows, or a number that divides them, got {len(given)}")
    try:
        rows = left_padded_rows(given, prompt_mask(given, guidance.negative_mask))
    except ValueError as error:
        raise ValueError(f"negative_prompt_{error}") from error
    return [row for row in rows for _ in range(batch // len(given))]


def _both(prompt: Prompt, negative: Prompt) -> Prompt:
    """The rows of two prompts, as wide as the wider."""
    embeds = nn.utils.rnn.pad_sequence([*prompt.embeds, *negative.embeds], batch_first=True)
    return Prompt(embeds, torch.cat([prompt.lengths, negative.lengths]))
