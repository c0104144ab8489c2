"""Models that the decoder cannot drive, and why: what a ragged window needs of a forward."""

from __future__ import annotations

from transformers import PretrainedConfig

__all__ = ["check_config"]

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
    attention = text_config._attn_implementation
    if attention not in ("sdpa", "eager"):  # FlashAttention takes no mask, and a ragged window needs one
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
