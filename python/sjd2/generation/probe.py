"""Whether driving a model by its backbone and its head gives the logits that its own forward gives: asked once, of every model without an adapter."""

from __future__ import annotations

import inspect
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from ..adapters.causal_lm import SlicedCausalLM
from ..adapters.refusals import check_forward

__all__ = ["check_logits", "whole_vocabulary"]

_checked: WeakSet[PreTrainedModel] = WeakSet()

#: Tokens of the prompt that the check feeds at most.
_LONGEST = 64


def whole_vocabulary(model: PreTrainedModel) -> SlicedCausalLM:
    """A model to decode with over all ids of its vocabulary.

    Raises:
        ValueError: it has no language-model head, its backbone cannot be told positions, or see ``adapters.refusals``.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"model: expected a causal language model with an output head, got {type(model).__name__}")
    rows = getattr(head, "out_features", None) or model.config.get_text_config(decoder=True).vocab_size
    adapter = SlicedCausalLM(model, 0, rows)
    check_forward(model)
    return adapter


def check_logits(adapter: SlicedCausalLM, ids: list[int]) -> None:
    """Compare the logits after a prompt with those of the model's own forward.

    Raises:
        ValueError: they differ by more than rounding: the forward does something to them (Chameleon's masks image tokens), or the backbone
            does not go by positions and mask, or takes none.
    """
    model = adapter.model
    if model in _checked or model.training or adapter.device.type == "meta":
        return
    row = torch.tensor([ids[:_LONGEST]], device=adapter.device)
    with torch.no_grad():
        keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        own = model(input_ids=row, use_cache=False, **keep).logits[0, -1].to(adapter.device)
        cache = adapter.new_cache(1, row.shape[1])
        try:
            ours = adapter.forward(adapter.embed_ids(row), cache)[0, -1]
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"model: expected a backbone that takes positions and a mask for every row, got {type(model.base_model).__name__}, which fails with "
                f"{error}"
            ) from error
    own = own[: len(ours)].to(torch.promote_types(torch.float32, own.dtype))
    distance, size = (ours - own).abs().max(), own.abs().max()
    if not distance <= torch.finfo(adapter.dtype).eps ** 0.5 * size:
        raise ValueError(
            f"model: expected logits that are its head's product with what its backbone gives, but {type(model).__name__}.forward gives others: up "
            f"to {float(distance):.2g} away, at a size of {float(size):.2g}"
        )
    _checked.add(model)
