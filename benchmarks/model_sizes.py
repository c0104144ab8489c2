"""Layout, parameters and cache of every model family at full size, computed on the meta device: no weights, no memory.

``python benchmarks/model_sizes.py -o benchmarks/results/model_sizes.json``, then ``python benchmarks/tables.py``. A family is one function here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from sjd2.adapters.causal_lm import column_bytes
from sjd2.adapters.glm_image import GlmImageAdapter
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.decoding import TokenLayout

#: Drafts per forward, and tokens of a prompt where the model does not fix them.
WINDOW, PROMPT = 96, 64


@dataclass(frozen=True)
class Size:
    """A model at full size.

    Attributes:
        model: on the meta device.
        layout: of one image.
        vocab_size: V, rows of the head that are multiplied.
        grid: of the image, as the table shows it.
        pixels: of the image, as the table shows them.
        apart: names of modules that decoding does not run, such as image tokenizers.
        prompt: tokens before the image.
    """

    model: torch.nn.Module
    layout: TokenLayout
    vocab_size: int
    grid: str
    pixels: str
    apart: tuple[str, ...] = ()
    prompt: int = PROMPT


def _on_meta(kind: Any, config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return kind(config).to(torch.bfloat16)


def emu3() -> Size:
    model = _on_meta(Emu3ForConditionalGeneration, Emu3Config(vocabulary_map={"<image>": 151_642}))
    codes = 32_768
    layout = TokenLayout.grid(1, 90, 90, row_end=(codes,), end=(codes + 1, codes + 2, codes + 3))
    return Size(model, layout, codes, "90 × 90, each row with an end of line, 3 end tokens", "720 × 720", apart=("model.vqmodel",))


def _janus(width: int, inner: int, layers: int, heads: int) -> Size:
    text = {
        "model_type": "llama", "vocab_size": 102_400, "max_position_embeddings": 16_384, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
    }  # fmt: skip
    vq = {"projection_dim": width, "image_token_embed_dim": width}
    model = _on_meta(JanusForConditionalGeneration, JanusConfig(text_config=text, vision_config={"projection_dim": width}, vq_config=vq))
    apart = ("model.vision_model", "model.aligner", "model.vqmodel", "lm_head")
    return Size(model, TokenLayout.grid(1, 24, 24), 16_384, "24 × 24", "384 × 384", apart)


def janus_pro_1b() -> Size:
    return _janus(2048, 5632, 24, 16)


def janus_pro_7b() -> Size:
    return _janus(4096, 11_008, 30, 32)


def _chameleon(layout: TokenLayout, grid: str, pixels: str) -> Size:
    return Size(
        _on_meta(ChameleonForConditionalGeneration, ChameleonConfig(vocabulary_map={"<image>": 8711})),
        layout,
        8192,
        grid,
        pixels,
        apart=("model.vqmodel",),
    )


def lumina_mgpt() -> Size:
    layout = TokenLayout.grid(1, 48, 48, row_end=(8192,), end=(8193,))
    return _chameleon(layout, "48 × 48, each row with an end of line, 1 end token", "768 × 768")


def anole() -> Size:
    return _chameleon(TokenLayout.grid(1, 32, 32), "32 × 32", "512 × 512")


class _GlmImageOnPaper(GlmImageAdapter):
    """Its layouts have contents, though the model has none."""

    device = torch.device("cpu")  # type: ignore[assignment]


def glm_image() -> Size:
    adapter = _GlmImageOnPaper(_on_meta(GlmImageForConditionalGeneration, GlmImageConfig()), None)
    grid = "draft 16 × 16, then 32 × 32, 1 end token"
    return Size(adapter.model, adapter.layout(1), adapter.vocab_size, grid, "1024 × 1024", apart=("model.visual", "model.vqmodel"))


def llamagen_xl() -> Size:
    config = LlamaConfig(
        vocab_size=16_384, hidden_size=1280, intermediate_size=3584, num_hidden_layers=36, num_attention_heads=20, num_key_value_heads=20,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Size(_on_meta(LlamaForCausalLM, config), TokenLayout.grid(1, 32, 32), 16_384, "32 × 32", "512 × 512", prompt=120)


def embedded() -> Size:
    config = LlamaConfig.from_pretrained(EMBEDDED_MODEL)
    fields = config.sjd2
    return Size(_on_meta(LlamaForCausalLM, config), TokenLayout.grid(1, *fields["grid"]), fields["image_ids"], "16 × 16", "32 × 32")


FAMILIES: dict[str, Callable[[], Size]] = {
    "Emu3-Gen 8B": emu3,
    "Janus-Pro-1B": janus_pro_1b,
    "Janus-Pro-7B": janus_pro_7b,
    "Lumina-mGPT 7B": lumina_mgpt,
    "Anole 7B": anole,
    "GLM-Image 9B": glm_image,
    "LlamaGen-XL": llamagen_xl,
    "embedded (TinyScenes)": embedded,
}


def figures(name: str) -> dict[str, Any]:
    """A row of the table."""
    size = FAMILIES[name]()
    text = size.model.config.get_text_config(decoder=True)
    steps = int(size.layout.lengths[0])
    per_token = column_bytes(text, torch.bfloat16)
    columns = size.prompt - 1 + steps + WINDOW  # as the loop asks for them
    parameters = sum(parameter.numel() for parameter in size.model.parameters())
    apart = sum(parameter.numel() for part in size.apart for parameter in size.model.get_submodule(part).parameters())
    return {
        "name": name,
        "class": type(size.model).__name__,
        "grid": size.grid,
        "pixels": size.pixels,
        "steps": steps,
        "structural": int((size.layout.forced >= 0).sum()),
        "vocab_size": size.vocab_size,
        "parameters": parameters,
        "decoding_parameters": parameters - apart,
        "prompt": size.prompt,
        "cache_bytes_per_token": per_token,
        "cache_bytes": columns * per_token,
        "guided_cache_bytes": 2 * columns * per_token,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    rows = [figures(name) for name in FAMILIES]
    for row in rows:
        print(f"{row['name']}: {row['steps']:,} steps, {row['parameters']:,} parameters, {row['cache_bytes_per_token']:,} bytes of cache per token")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"window": WINDOW, "prompt": PROMPT, "dtype": "bfloat16", "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
