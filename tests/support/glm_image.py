"""A GLM-Image that fits into a test: 24 codes, images of 2 × 2 tokens (their drafts always have about 256), random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, GlmImageProcessor
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from support.byte_tokenizer import byte_tokenizer

CODES, START, END, VISION_IDS = 24, 24, 25, 32
PATCH = 4  # pixels along a side of what the vision model sees as one token
TEMPLATE = (
    "{% for message in messages %}<|user|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def build_processor() -> GlmImageProcessor:
    image_tokens = [f"<|dit_token_{index}|>" for index in range(VISION_IDS)]
    text = byte_tokenizer(
        ["<|endoftext|>", "<|user|>", "<|image|>", "<sop>", "<eop>"],
        first=image_tokens,
        bos_token=image_tokens[START],
        eos_token=image_tokens[END],
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
    )
    images = GlmImageImageProcessorPil(patch_size=PATCH, temporal_patch_size=1, merge_size=1)
    return GlmImageProcessor(images, text, chat_template=TEMPLATE)


def build_model(processor: GlmImageProcessor) -> GlmImageForConditionalGeneration:
    torch.manual_seed(0)
    vocab_size, pad = len(processor.tokenizer), processor.tokenizer.pad_token_id
    text = {
        "vocab_size": vocab_size, "vision_vocab_size": VISION_IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "initializer_range": 0.3, "pad_token_id": pad,
        "eos_token_id": END, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "image_size": 16 * PATCH, "patch_size": PATCH,
        "initializer_range": 0.3,
    }  # fmt: skip
    codes = {"num_embeddings": CODES, "embed_dim": 8, "latent_channels": 16, "initializer_range": 0.3}
    config = GlmImageConfig(
        text_config=text, vision_config=vision, vq_config=codes, image_token_id=processor.image_token_id, image_start_token_id=START,
        image_end_token_id=END,
    )  # fmt: skip
    config.update({"sjd2": {"grid": [2, 2]}})
    model = GlmImageForConditionalGeneration(config)
    with torch.no_grad():  # a codebook is drawn from a range too small to tell its entries apart
        torch.nn.init.normal_(model.model.vqmodel.quantize.embedding.weight)
    return model


def write_model(folder: Path) -> Path:
    """A folder that ``load_adapter`` reads."""
    processor = build_processor()
    build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
