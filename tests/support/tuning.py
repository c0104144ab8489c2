"""A model that fits into a test: TinyScenes with images of 4 × 4 tokens and random weights, as a folder and in memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from sjd2 import load_adapter
from sjd2.adapters.tiny_scenes import TinyScenesAdapter
from sjd2.tiny_scenes.fsq import FSQConfig, FSQTokenizer
from sjd2.tiny_scenes.text import TEXT_VOCAB_SIZE, build_text_tokenizer

GRID, CODES, TOKENS = 4, 30, 16


def write_model(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A folder that ``load_adapter`` reads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT_VOCAB_SIZE + CODES, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1, pad_token_id=0, eos_token_id=None,
        tie_word_embeddings=tied,
    )  # fmt: skip
    config.update({"sjd2": {"adapter": "tiny_scenes", "image_id_start": TEXT_VOCAB_SIZE, "image_ids": CODES, "grid": [GRID, GRID]}})
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    FSQTokenizer(FSQConfig(levels=(5, 3, 2), channels=4, encoder_blocks=1, decoder_blocks=1)).save_pretrained(folder)
    build_text_tokenizer().save_pretrained(folder)
    return folder


def load_model(folder: Path, dtype: torch.dtype = torch.float64) -> TinyScenesAdapter:
    """The model, ready to be trained."""
    adapter = load_adapter(folder, device="cpu", dtype=dtype)
    adapter.model.requires_grad_(True)
    return adapter


def examples(count: int, seed: int = 0) -> list[dict]:
    """Captions of different lengths, some empty, and tokens that can be learnt: each is the one before it plus a step."""
    generator = torch.Generator().manual_seed(seed)
    captions = ("a red coat on a yellow background", "a bag", "", "a blue boot")
    first, step = (torch.randint(0, high, (count, 1), generator=generator) for high in (CODES, 3))
    tokens = (first + (1 + step) * torch.arange(TOKENS)) % CODES
    return [{"prompt": captions[i % len(captions)], "tokens": row} for i, row in enumerate(tokens.tolist())]


def write_tokens(path: Path, count: int = 12) -> Path:
    """A .jsonl file of examples."""
    path.write_text("".join(json.dumps(example) + "\n" for example in examples(count)))
    return path


def write_images(folder: Path, count: int = 6, side: int = 2 * GRID) -> Path:
    """A folder of pictures with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    lines = []
    for index in range(count):
        pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": "a bag"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder
