"""Emu3 with random weights, a few hundred kilobytes of it, and its processor: what a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3ImageProcessor, Emu3Processor

from support.byte_tokenizer import byte_tokenizer

CODES = 24
_SPECIAL = [
    "<|endoftext|>", "<|extra_200|>", "<|extra_201|>", "<|extra_203|>", "<|extra_204|>", "<|image token|>", "<|image start|>", "<|image end|>",
    "<image>", *(f"<|visual token {code:06d}|>" for code in range(CODES)),
]  # fmt: skip


def emu3_processor() -> Emu3Processor:
    text = byte_tokenizer(
        _SPECIAL,
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
    )
    return Emu3Processor(Emu3ImageProcessor(min_pixels=64, max_pixels=2**20), text)


def emu3_model(processor: Emu3Processor) -> Emu3ForConditionalGeneration:
    text = processor.tokenizer
    vocabulary = text.get_vocab()
    config = Emu3Config(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.4, "pad_token_id": text.pad_token_id,
            "bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "attention_dropout": 0.0,
        },
        vq_config={
            "codebook_size": CODES, "base_channels": 32, "channel_multiplier": [1] * 4, "num_res_blocks": 1, "attn_resolutions": [],
            "hidden_size": 32,
        },
        vocabulary_map=vocabulary,
    )  # fmt: skip
    torch.manual_seed(0)
    return Emu3ForConditionalGeneration(config).double().eval()


def save_emu3(folder: Path) -> Path:
    processor = emu3_processor()
    emu3_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
