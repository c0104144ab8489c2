"""Chameleon with random weights, a tokenizer of bytes, and the VQGAN of its release: what folders of Anole and Lumina-mGPT hold."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from support.byte_tokenizer import byte_tokenizer

CODES, LEVELS, BLOCKS, CHANNELS, EMBED, LATENT = 24, 2, 1, 32, 8, 32
PATCH = 2 ** (LEVELS - 1)
MULTIPLIER = [1, 2]
#: Which code the n-th image id stands for: no order that tests could pass by accident.
CODE_OF = [(7 * index + 5) % CODES for index in range(CODES)]

_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
_SPECIAL = [
    "<s>", "<pad>", "</s>", "<unk>", *(f"IMGIMG{str(code).translate(_LETTERS)}Z" for code in CODE_OF), "<eoss>", "<racm3:break>",
    "<reserved08706>", "<image>", "<reserved08799>", *(f"<reserved{8800 + size:05d}>" for size in range(1, 25)),
]  # fmt: skip


def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(_SPECIAL, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", sep_token="<reserved08706>")


def vq_config() -> ChameleonVQVAEConfig:
    return ChameleonVQVAEConfig(
        embed_dim=EMBED, num_embeddings=CODES, latent_channels=LATENT, resolution=4 * PATCH, base_channels=CHANNELS,
        channel_multiplier=MULTIPLIER, num_res_blocks=BLOCKS,
    )  # fmt: skip


def chameleon_config(**fields: object) -> ChameleonConfig:
    vocabulary = chameleon_tokenizer().get_vocab()
    return ChameleonConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, initializer_range=0.4, vocabulary_map=vocabulary,
        **{"vq_config": vq_config().to_dict(), **fields},
    )  # fmt: skip


def chameleon_model(**fields: object) -> ChameleonForConditionalGeneration:
    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(chameleon_config(**fields)).double().eval()
    torch.nn.init.normal_(model.model.vqmodel.quantize.embedding.weight, std=1.0)
    return model


def chameleon_processor() -> ChameleonProcessor:
    return ChameleonProcessor(ChameleonImageProcessor(), chameleon_tokenizer(), image_seq_length=16)


def save_chameleon(folder: Path, **fields: object) -> Path:
    """As an image-to-text checkpoint: with an encoder of pixels, without a decoder."""
    chameleon_model(**fields).save_pretrained(folder)
    chameleon_processor().save_pretrained(folder)
    return folder


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * (0.5 if len(shape) == 1 else 2.0 / shape[1] ** 0.5 / shape[-1])


def vqgan_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A VQGAN by the names of the original release, whose levels of the decoder are counted from the pixels."""
    generator = torch.Generator().manual_seed(seed)
    own = ChameleonVQVAE(vq_config()).state_dict()
    weights = {name: _normal(generator, *tensor.shape) if tensor.ndim == 4 else tensor.double() for name, tensor in own.items()}
    weights["quantize.embedding.weight"] = torch.randn(CODES, EMBED, generator=generator, dtype=torch.float64)

    def layer(name: str, outputs: int, inputs: int, size: int) -> None:
        weights[f"decoder.{name}.weight"] = _normal(generator, outputs, inputs, size, size)
        weights[f"decoder.{name}.bias"] = _normal(generator, outputs)

    def norm(name: str, channels: int) -> None:
        weights[f"decoder.{name}.weight"], weights[f"decoder.{name}.bias"] = 1 + _normal(generator, channels), _normal(generator, channels)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        layer(f"{name}.conv1", outputs, inputs, 3)
        norm(f"{name}.norm2", outputs)
        layer(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            layer(f"{name}.nin_shortcut", outputs, inputs, 1)

    channels = CHANNELS * MULTIPLIER[-1]
    layer("conv_in", channels, LATENT, 3)
    block("mid.block_1", channels, channels)
    norm("mid.attn_1.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        layer(f"mid.attn_1.{name}", channels, channels, 1)
    block("mid.block_2", channels, channels)
    for level in reversed(range(LEVELS)):
        for index in range(BLOCKS + 1):
            block(f"up.{level}.block.{index}", channels, CHANNELS * MULTIPLIER[level])
            channels = CHANNELS * MULTIPLIER[level]
        if level:
            layer(f"up.{level}.upsample.conv", channels, channels, 3)
    norm("norm_out", channels)
    layer("conv_out", 3, channels, 3)
    return weights


def vqgan_pixels(weights: dict[str, torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    """What the release makes of codes ``[B, H, W]``, written out from its weights."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        inner = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)))
        inner = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", inner)))
        return inner + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    x = conv("decoder.conv_in", conv("post_quant_conv", weights["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)))
    x = block("decoder.mid.block_1", x)
    q, k, v = (conv(f"decoder.mid.attn_1.{name}", norm("decoder.mid.attn_1.norm", x)).flatten(2).transpose(1, 2) for name in "qkv")
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    x = block("decoder.mid.block_2", x + conv("decoder.mid.attn_1.proj_out", attended))
    for level in reversed(range(LEVELS)):
        for index in range(BLOCKS + 1):
            x = block(f"decoder.up.{level}.block.{index}", x)
        if level:
            x = conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
    return conv("decoder.conv_out", F.silu(norm("decoder.norm_out", x)))
