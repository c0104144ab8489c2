"""What Hugging Face's ``generate`` hands over, read as prompts; whatever the decoder cannot do is refused here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, MaxLengthCriteria, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria

__all__ = ["Ends", "check_ids", "check_mode", "check_rest", "check_vocabulary", "left_padded_rows", "prompt_mask", "read_ends"]

#: Arguments that say nothing the decoder would have to know: it has a cache of its own and takes as many logits as it needs.
_IMMATERIAL = ("use_cache", "logits_to_keep", "cache_position", "return_dict", "past_key_values", "attention_mask", "position_ids", "inputs_embeds")

#: What of a generation configuration makes it something else than sampling or greedy decoding, and the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "force_words_ids": (None,),
    "dola_layers": (None,),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
}

_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def check_ids(input_ids: Any) -> None:
    """Refuse what are no ids of prompts.

    Raises:
        ValueError: anything but a tensor ``[B, P]`` of whole numbers, or no ids at all.
    """
    if input_ids is None:
        return
    if not isinstance(input_ids, torch.Tensor):
        raise ValueError(f"input_ids: expected a tensor [B, P], such as a tokenizer gives with return_tensors='pt', got {input_ids!r:.60}")
    if input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"input_ids: expected int64 [B, P], got {input_ids.dtype} {tuple(input_ids.shape)}")
    if not input_ids.numel():
        raise ValueError(f"input_ids: expected at least one id for each prompt, got shape {tuple(input_ids.shape)}")


def check_mode(config: GenerationConfig) -> None:
    """Refuse what is neither sampling nor greedy decoding, and outputs that only one forward per token could give.

    Raises:
        ValueError: it names the argument.
    """
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        causes = [name for name, plain in _PLAIN.items() if getattr(config, name, None) not in plain]
        name = causes[0] if causes else "generation_config"
        raise ValueError(f"{name}: expected sampling or greedy decoding, got {getattr(config, name, mode.value)!r}, which makes it {mode.value}")
    if config.return_dict_in_generate:
        for name in _OUTPUTS:
            if getattr(config, name, False):
                raise ValueError(f"{name}: expected False, got True: a window of drafts leaves none per token")


def prompt_mask(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """bool ``[B, P]``: columns of the prompt that are no padding.

    Raises:
        ValueError: a mask of another shape, or padding at the right end.
    """
    if attention_mask is None:
        return torch.ones(input_ids.shape[:2], dtype=torch.bool, device=input_ids.device)
    if attention_mask.shape != input_ids.shape[:2]:
        raise ValueError(f"attention_mask: expected shape {tuple(input_ids.shape[:2])}, got {tuple(attention_mask.shape)}")
    mask = attention_mask != 0
    if not bool(mask[:, -1].all()):
        raise ValueError("attention_mask: expected padding on the left, got some on the right; set padding_side='left'")
    return mask.to(input_ids.device)


def left_padded_rows(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Each row's ids without its padding."""
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def check_rest(arguments: Mapping[str, Any], mask: torch.Tensor) -> None:
    """Refuse inputs of the model that the prompt's ids do not tell, and that nobody has taken.

    Raises:
        ValueError: it names the argument.
    """
    cache = arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(f"past_key_values: expected an empty cache or none, got one of {cache.get_seq_length()} tokens")
    positions = arguments.get("position_ids")
    if positions is not None:
        usual = (mask.long().cumsum(-1) - 1).to(positions.device)
        fits = positions.shape[-1] == usual.shape[-1]
        if not fits or not bool(((positions == usual) | ~mask.to(positions.device)).all()):
            raise ValueError("position_ids: expected those that follow from the attention mask, got others")
    mode = arguments.get("generation_mode")
    if mode is not None:
        raise ValueError(f"generation_mode: expected none, or one that the model's adapter knows (with processor=), got {mode!r}")
    for name, value in arguments.items():
        empty = value is None or value is False or (isinstance(value, Mapping) and not value)
        if name not in _IMMATERIAL and not empty:
            name = "pixel_values" if name == "mm_encoder_outputs" else name  # what Transformers has made of them by now
            raise ValueError(f"{name}: expected a prompt of token ids alone, got an input that no adapter of this model takes (some need processor=)")


def check_vocabulary(name: str, ids: Sequence[Sequence[int]], model: PreTrainedModel) -> None:
    """Refuse ids that the model's vocabulary has not.

    Raises:
        ValueError: it has ``name``.
    """
    count = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)  # a table of another kind says for itself what it lacks
    strange = [token for row in ids for token in row if not 0 <= token < count]
    if strange:
        raise ValueError(f"{name}: expected ids of the model's vocabulary, from 0 to {count - 1}, got {strange[0]}")


@dataclass(frozen=True)
class Ends:
    """Where rows end: after ``length`` new tokens, with one of ``ids``, or where one of ``criteria`` fires."""

    length: int
    ids: tuple[int, ...]
    criteria: tuple[Any, ...]


def read_ends(criteria: Sequence[Any], prompt_length: int) -> Ends:
    """Sort stopping criteria by who looks after them.

    Raises:
        ValueError: nothing says how long a row may be.
    """
    lengths = [one.max_length for one in criteria if type(one) is MaxLengthCriteria]
    if not lengths:
        raise ValueError("max_new_tokens: expected a number of tokens at most, got none")
    ids = [token for one in criteria if type(one) is EosTokenCriteria for token in torch.as_tensor(one.eos_token_id).flatten().tolist()]
    others = [one for one in criteria if type(one) not in (MaxLengthCriteria, EosTokenCriteria)]
    return Ends(max(1, min(lengths) - prompt_length), tuple(dict.fromkeys(ids)), tuple(others))
