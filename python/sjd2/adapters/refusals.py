"""Models that the decoder cannot drive, and why: what a ragged window needs of a forward."""

from __future__ import annotations

import inspect

from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["check_config", "check_forward", "check_placement"]

#: Entries of ``layer_types`` by what is wrong with them; everything else that is not full attention keeps a state that cannot be rolled back.
_WINDOWED = ("sliding_attention", "chunked_attention")


def check_config(config: PretrainedConfig, text_config: PretrainedConfig) -> None:
    """Refuse what the decoder would get wrong.

    Args:
        config: of the whole model.
        text_config: of its decoder's layers.

    Raises:
        ValueError: an encoder–decoder model, attention that takes no mask or sees a part of the sequence only, layers with a recurrent state,
            or logits that are more than the head's product.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model: expected a decoder-only model, got the encoder-decoder model type {config.model_type!r}")
    attention = text_config._attn_implementation  # None: no model has been made of the configuration yet
    if attention not in (None, "sdpa", "eager"):  # FlashAttention takes no mask, and a ragged window needs one
        raise ValueError(f"model: expected attn_implementation sdpa or eager, got {attention}")
    layers = getattr(text_config, "layer_types", None) or ["sliding_attention" if getattr(text_config, "sliding_window", None) else "full_attention"]
    others = sorted(set(layers) - {"full_attention"})
    if others:
        why = "sees a part of the sequence only" if all(layer in _WINDOWED for layer in others) else "keeps a state that no draft can be taken out of"
        raise ValueError(f"model: expected full attention in every layer, got {', '.join(others)}, which {why}")
    for field in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(text_config, field, None) not in (None, 1, 1.0):
            raise ValueError(f"model: expected logits that are the head's product, got {field} = {getattr(text_config, field)}")
    if not getattr(text_config, "num_hidden_layers", None) or not getattr(text_config, "num_attention_heads", None):
        raise ValueError(
            f"model: expected a model of attention layers, got model type {config.model_type!r}, whose state no draft can be taken out of"
        )


def check_placement(model: PreTrainedModel) -> None:
    """Refuse a model that computes on several devices; weights that a device map leaves on the disk or beside a GPU on the CPU are brought to it.

    Raises:
        ValueError: several.
    """
    placed = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    computing = sorted(placed - {"disk", "cpu"})
    if len(computing) > 1:  # a row's length would have to be on each of them
        raise ValueError(
            f"device_map: expected a model that computes on one device, got {', '.join(computing)}: one length counts a row's keys and values in all "
            "layers; several devices share every layer by tp_plan under torchrun"
        )


def check_forward(model: PreTrainedModel) -> None:
    """Refuse a model of a family that nothing is known of if its forward shows that it cannot be driven.

    Raises:
        ValueError: a recurrent state that the configuration does not tell of, or no positions, masks, embeddings or cache to be given.
    """
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"model: expected full attention in every layer, got {type(model).__name__}, whose state no draft can be taken out of")
    taken = inspect.signature(model.base_model.forward).parameters
    lacking = [name for name in ("inputs_embeds", "attention_mask", "position_ids", "past_key_values") if name not in taken]
    if lacking:
        raise ValueError(f"model: expected a forward that takes {', '.join(lacking)}, got {type(model).__name__}, whose does not")
