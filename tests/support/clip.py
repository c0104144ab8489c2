"""A CLIP model with random weights, on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from support.byte_tokenizer import byte_tokenizer

LENGTH = 16


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    text = {"vocab_size": 259, "max_position_embeddings": LENGTH, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    config = CLIPConfig(text_config=small | text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(["<pad>", "<start>", "<end>"], pad_token="<pad>", bos_token="<start>", eos_token="<end>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 257), ("<end>", 258)])
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder
