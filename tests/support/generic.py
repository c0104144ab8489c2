"""A Llama that writes images of 3 × 4 tokens among words, with marks behind rows and images, and random weights; no adapter knows its family."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sjd2 import TextToImagePipeline
from sjd2.adapters.generic import GenericAdapter
from support.byte_tokenizer import byte_tokenizer

CODES, GRID = 24, (3, 4)
_SPECIAL = ["<pad>", "<bos>", "<image>", "<line>", "</image>", "<eos>", *(f"<image {code}>" for code in range(CODES)), "<none>"]
IMAGE, LINE, END_IMAGE, EOS, FIRST, NONE = 258, 259, 260, 261, 262, 262 + CODES
FIELDS = {
    "image_id_start": FIRST, "image_ids": CODES, "grid": list(GRID), "row_end": [LINE], "end": [END_IMAGE, EOS], "prompt": "<bos>{prompt}<image>",
    "unconditional": "<bos><none><image>", "guidance_scale": 2.0, "top_k": 20, "patch": 2,
}  # fmt: skip


def generic_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(_SPECIAL, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left")


def generic_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NONE + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.3, pad_token_id=256, bos_token_id=257, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def save_generic(folder: Path, entry: dict | None = None) -> Path:
    """A folder without an adapter, or with this entry in its configuration."""
    model = generic_model()
    if entry is not None:
        model.config.update({"sjd2": entry})
    model.save_pretrained(folder)
    generic_tokenizer().save_pretrained(folder)
    return folder


def squares(tokens: torch.Tensor) -> torch.Tensor:
    """A decoder of pixels: each token is 2 × 2 of one grey."""
    grey = (tokens.double() / (CODES - 1) * 2 - 1).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return grey[:, None].expand(-1, 3, -1, -1)


def generic_pipeline() -> TextToImagePipeline:
    """The model with its decoder, in float64: a picture takes a moment."""
    return TextToImagePipeline(GenericAdapter(generic_model(), generic_tokenizer(), squares, **FIELDS))
