"""From LlamaGen's published files to a folder that ``load_adapter`` reads: tensors are renamed and reordered, none is computed."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, JanusVQVAE, LlamaConfig, LlamaForCausalLM, T5EncoderModel
from transformers.models.janus import JanusVQVAEConfig

from .llamagen import CAPTION_FILE, TEXT_FOLDER, VQ_FOLDER
from .vq import pixels_per_token

__all__ = ["convert_llamagen"]

_State = dict[str, torch.Tensor]

#: Attention heads by width, of the published sizes.
_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}

_BLOCK = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_CAPTION = {"cap_proj.fc1.weight": "fc1.weight", "cap_proj.fc2.weight": "fc2.weight", "uncond_embedding": "unconditional"}


def _read(argument: str, path: Path) -> _State:
    """The tensors of a checkpoint, by names without what wrappers put before them."""
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: expected a file, {path} is none")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training wrote its arguments beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own kinds
        raise ValueError(f"{argument}: {path} cannot be read as a PyTorch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{argument}: expected tensors by name, {path} holds a {type(content).__name__}")
    state = next((content[name] for name in ("model", "module", "state_dict") if name in content), content)
    return {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _take(argument: str, state: _State, name: str) -> torch.Tensor:
    if name not in state:
        raise ValueError(f"{argument}: expected a tensor {name}, got a checkpoint without")
    return state.pop(name)


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection whose rotary pairs are neighbours, in the order of a Llama: first members of all pairs of a head, then second ones."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _convert_block(state: _State, index: int, heads: int, kv_heads: int, head_dim: int) -> _State:
    """One layer's tensors by their new names."""
    qkv = _take("gpt", state, f"layers.{index}.attention.wqkv.weight")
    rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    if qkv.shape[0] != sum(rows):
        raise ValueError(f"gpt: expected {sum(rows)} rows in layers.{index}.attention.wqkv.weight, got {qkv.shape[0]}")
    query, key, value = qkv.split(rows)
    block = {"self_attn.q_proj": _halves(query, heads), "self_attn.k_proj": _halves(key, kv_heads), "self_attn.v_proj": value}
    block |= {new: _take("gpt", state, f"layers.{index}.{old}.weight") for old, new in _BLOCK.items()}
    return {f"model.layers.{index}.{name}.weight": weight.contiguous() for name, weight in block.items()}


def _convert_gpt(state: _State, heads: int | None) -> tuple[LlamaConfig, _State, _State]:
    """Configuration and tensors of the Llama, and those of the caption's projection."""
    if "cls_embedding.embedding_table.weight" in state:
        raise ValueError("gpt: expected a model of captions, got one of classes")
    embedding = _take("gpt", state, "tok_embeddings.weight")
    codes, width = embedding.shape
    heads = _HEADS.get(width) if heads is None else heads
    if heads is None or heads < 1 or width % heads or width // heads % 4:
        known = ", ".join(map(str, _HEADS))
        raise ValueError(f"heads: expected the number of attention heads of a model of width {width} (it is known for {known}), got {heads}")
    head_dim = width // heads
    layers = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    for name in ("layers.0.attention.wqkv.weight", "layers.0.feed_forward.w1.weight"):
        if name not in state:
            raise ValueError(f"gpt: expected a tensor {name}, got a checkpoint without")
    kv_heads = (state["layers.0.attention.wqkv.weight"].shape[0] // head_dim - heads) // 2
    config = LlamaConfig(
        vocab_size=codes, hidden_size=width, intermediate_size=state["layers.0.feed_forward.w1.weight"].shape[0], num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-5, attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    caption = {new: _take("gpt", state, f"cls_embedding.{old}").contiguous() for old, new in _CAPTION.items()}
    converted = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": _take("gpt", state, "norm.weight"),
        "lm_head.weight": _take("gpt", state, "output.weight"),
    }
    for index in range(layers):
        converted |= _convert_block(state, index, heads, kv_heads, head_dim)
    return config, converted, caption


def _convert_vq(state: _State, image_size: int) -> tuple[JanusVQVAEConfig, _State]:
    """Configuration and tensors of the tokenizer of images."""
    encoder = [name for name in state if re.fullmatch(r"encoder\.conv_blocks\.\d+\.res\.0\.conv1\.weight", name)]
    for name in ("encoder.conv_in.weight", "quantize.embedding.weight", "post_quant_conv.weight", "encoder.conv_blocks.0.res.0.conv1.weight"):
        if name not in state:
            raise ValueError(f"vq: expected a tensor {name}, got a checkpoint without")
    base = state["encoder.conv_in.weight"].shape[0]
    multiplier = [state[f"encoder.conv_blocks.{level}.res.0.conv1.weight"].shape[0] // base for level in range(len(encoder))]
    side = 2 ** (len(multiplier) - 1)
    if image_size < side or image_size % side:
        raise ValueError(f"image_size: expected a multiple of the tokenizer's {side} pixels per token, got {image_size}")
    config = JanusVQVAEConfig(
        embed_dim=state["quantize.embedding.weight"].shape[1], num_embeddings=len(state["quantize.embedding.weight"]), base_channels=base,
        latent_channels=state["post_quant_conv.weight"].shape[0], channel_multiplier=multiplier, num_patches=image_size // side,
        num_res_blocks=len([name for name in state if re.fullmatch(r"encoder\.conv_blocks\.0\.res\.\d+\.conv1\.weight", name)]),
    )  # fmt: skip
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^(encoder|decoder)\.mid\.([012])\.", lambda m: f"{m[1]}.mid.{('block_1', 'attn_1', 'block_2')[int(m[2])]}.", name)
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        name = re.sub(r"^decoder\.conv_blocks\.", "decoder.up.", name)
        renamed[re.sub(r"^((?:en|de)coder\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)] = value.contiguous()
    renamed.pop("quantize.codebook_used", None)
    return config, renamed


def _filled(argument: str, kind: Any, config: Any, state: _State) -> Any:
    """A model of the class ``kind`` that holds exactly these tensors."""
    with torch.device("meta"):
        model = kind(config)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    if missing:
        raise ValueError(f"{argument}: {len(missing)} tensors are missing, among them {missing[0]} (by its new name)")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise ValueError(f"{argument}: expected the shape {tuple(value.shape)} for {name} (by its new name), got {tuple(state[name].shape)}")
    others = sorted(state.keys() - expected.keys())
    if others:
        warnings.warn(f"{argument}: {len(others)} tensors are of no use and left out, among them {others[0]}", stacklevel=3)
    model.load_state_dict({name: state[name] for name in expected}, assign=True)
    return model.to(state["lm_head.weight" if "lm_head.weight" in state else "quantize.embedding.weight"].dtype)


def convert_llamagen(
    gpt: str | Path, vq: str | Path, text_encoder: str | Path, output: str | Path, *, image_size: int, heads: int | None = None
) -> Path:
    """Write a folder that ``load_adapter`` and ``TextToImagePipeline.from_pretrained`` read; all at once, so that it is complete or not there.

    Args:
        gpt: checkpoint of a text-conditional model, such as ``t2i_XL_stage2_512.pt``.
        vq: checkpoint of its tokenizer of images, ``vq_ds16_t2i.pt``.
        text_encoder: folder or hub name of the T5 that it was trained with, ``google/flan-t5-xl``.
        output: a folder that does not exist yet.
        image_size: pixels along a side of the images, which no file says: 256 for stage 1, 512 for stage 2.
        heads: attention heads, where the width is none of a published model.

    Raises:
        ValueError: tensors that are missing, or do not fit each other.
        OSError: a file that is not there, or an output that is.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"output: expected a folder that does not exist yet, {output} does")
    vq_config, vq_state = _convert_vq(_read("vq", Path(vq)), image_size)
    tokenizer = _filled("vq", JanusVQVAE, vq_config, vq_state)
    rest = _read("gpt", Path(gpt))
    config, state, caption = _convert_gpt(rest, heads)
    rest.pop("freqs_cis", None)  # the table of rotary positions
    side = image_size // pixels_per_token(tokenizer)
    config.max_position_embeddings = len(caption["unconditional"]) + side**2
    config.update({"sjd2": {"adapter": "llamagen", "grid": [side, side]}})
    model = _filled("gpt", LlamaForCausalLM, config, state | rest)
    width, features = caption["fc1.weight"].shape
    fits = {"fc1.weight": (width, features), "fc2.weight": (config.hidden_size, width), "unconditional": (len(caption["unconditional"]), features)}
    for name, shape in fits.items():
        if caption[name].shape != shape:
            raise ValueError(f"gpt: expected the shape {shape} for the caption's {name}, got {tuple(caption[name].shape)}")
    if vq_config.num_embeddings != config.vocab_size:
        raise ValueError(f"vq: expected a codebook of the model's {config.vocab_size} ids, got {vq_config.num_embeddings}")
    encoder = T5EncoderModel.from_pretrained(text_encoder, dtype="auto")
    if encoder.config.d_model != features:
        raise ValueError(f"text_encoder: expected one of {features} features, got {encoder.config.d_model} of {text_encoder}")
    text = AutoTokenizer.from_pretrained(text_encoder)

    scratch = output.with_name(f".{output.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        model.save_pretrained(scratch)
        save_file({name: value.to(model.dtype) for name, value in caption.items()}, scratch / CAPTION_FILE)
        tokenizer.save_pretrained(scratch / VQ_FOLDER)
        encoder.save_pretrained(scratch / TEXT_FOLDER)
        text.save_pretrained(scratch / TEXT_FOLDER)
        os.replace(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return output
