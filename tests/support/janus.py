"""Janus with random weights, a few hundred kilobytes of it, and its processor: what a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from support.byte_tokenizer import byte_tokenizer

CODES, SIDE = 24, 4
#: As a turn of Janus-Pro's template looks.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|User|>: ' + message['content'][0]['text'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


def janus_processor() -> JanusProcessor:
    special = ["<pad>", "<bos>", "<eos>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<|User|>", "<|Assistant|>"]
    text = byte_tokenizer(
        special, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left",
        extra_special_tokens={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
    )  # fmt: skip
    from tokenizers.processors import TemplateProcessing

    text.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", text.bos_token_id)])
    images = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 2 * SIDE, "width": 2 * SIDE}, min_size=2)
    return JanusProcessor(images, text, chat_template=_TEMPLATE, use_default_system_prompt=True, num_image_tokens=SIDE**2)


def janus_model(processor: JanusProcessor) -> JanusForConditionalGeneration:
    text = processor.tokenizer
    config = JanusConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(text), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.4,
            "pad_token_id": text.pad_token_id, "bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id,
        },
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 2 * SIDE, "patch_size": 2, "mlp_ratio": 2,
            "projection_dim": 32, "num_image_tokens": SIDE**2,
        },
        vq_config={
            "embed_dim": 4, "num_embeddings": CODES, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
            "projection_dim": 32, "image_token_embed_dim": 32, "initializer_range": 0.4,
        },
        image_token_id=text.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config).double().eval()
    with torch.no_grad():  # the parts that images have for themselves start out too small for anything but one token to matter
        for module in (model.model.generation_embeddings, model.model.generation_aligner, model.model.generation_head):
            for parameter in module.parameters():
                parameter.normal_(0, 0.4)
        model.model.vqmodel.quantize.embedding.weight.normal_()
    ids = model.generation_config
    ids._from_model_config = False  # else what Janus adds to it is not read back
    ids.pad_token_id, ids.bos_token_id, ids.eos_token_id = text.pad_token_id, text.bos_token_id, text.eos_token_id
    ids.generation_kwargs = {"boi_token_id": text.convert_tokens_to_ids("<begin_of_image>")}
    ids.guidance_scale = 5
    return model


def save_janus(folder: Path) -> Path:
    processor = janus_processor()
    janus_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
