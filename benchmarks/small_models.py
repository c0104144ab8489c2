"""Models of the published architectures with a few thousand parameters: what runs for hours at full size is tried on them in seconds."""

from __future__ import annotations

import torch
from model_sizes import Size
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
)

from sjd2.decoding import TokenLayout

_LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
_VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}


def emu3() -> Size:
    text = {**_LAYERS, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Emu3Config(text_config=text, vq_config={**_VQ, "attn_resolutions": []}, vocabulary_map={"<image>": 9})
    with torch.device("meta"):
        model = Emu3ForConditionalGeneration(config)
    return Size(model, TokenLayout.grid(1, 4, 4, row_end=(40,), end=(41, 42)), 40, "4 × 4", "32 × 32", prompt=5)


def lumina() -> Size:
    config = ChameleonConfig(**_LAYERS, vocab_size=64, vq_config={**_VQ, "num_embeddings": 40, "embed_dim": 8}, vocabulary_map={"<image>": 2})
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    return Size(model, TokenLayout.grid(1, 4, 4, row_end=(40,), end=(41,)), 40, "4 × 4", "32 × 32", prompt=5)


def janus() -> Size:
    text = {**_LAYERS, "model_type": "llama", "vocab_size": 64}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 32}
    vq = {**_VQ, "num_embeddings": 24, "embed_dim": 8, "latent_channels": 8, "projection_dim": 32, "image_token_embed_dim": 32, "num_patches": 4}
    with torch.device("meta"):
        model = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision, vq_config=vq))
    return Size(model, TokenLayout.grid(1, 4, 4), 24, "4 × 4", "16 × 16", prompt=5)
