"""A model that is decoded over its whole vocabulary: looked at once, for it has no adapter."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from transformers import PreTrainedModel

from ..adapters.causal_lm import SlicedCausalLM
from ..adapters.kept import kept
from ..adapters.probe import check_logits
from ..adapters.refusals import check_forward

__all__ = ["check_once", "whole_vocabulary"]

_checked: WeakSet[PreTrainedModel] = WeakSet()


def whole_vocabulary(model: PreTrainedModel) -> SlicedCausalLM:
    """A model to decode with over all ids of its vocabulary.

    Raises:
        ValueError: it has no language-model head, its backbone cannot be told positions, or see ``adapters.refusals``.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"model: expected a causal language model with an output head, got {type(model).__name__}")
    rows = getattr(head, "out_features", None) or model.config.get_text_config(decoder=True).vocab_size
    adapter = kept(SlicedCausalLM, model, 0, rows)
    check_forward(model)
    return adapter


def check_once(adapter: SlicedCausalLM, ids: Sequence[int]) -> None:
    """See ``adapters.probe``; what was found right is not asked again.

    Raises:
        ValueError: the logits are not those of the model's own forward.
    """
    if adapter.model not in _checked and check_logits(adapter, ids):
        _checked.add(adapter.model)
