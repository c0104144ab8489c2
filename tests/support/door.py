"""A call of ``generate`` by the model's own loop and through the door, and small models of several families."""

from __future__ import annotations

import warnings

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import sjd2
from support.frozen_noise import FrozenGumbel

VOCABULARY = 40
SEEDS = [11, 5, 2**62]


def both(model, inputs, *, method="jacobi", window=8, quiet=True, **settings):
    """The model's own tokens, and those through the door."""
    own = model.generate(**inputs, **settings)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        window = None if method == "ar" else window
        return own, model.generate(**inputs, custom_generate=sjd2.generate, method=method, window=window, **settings)


def frozen(model, inputs, *, method="jacobi", seeds=SEEDS, window=8, own_settings=None, **settings):
    """Both with the same noise: the model's own picks the highest of warped scores plus the noise."""
    warpers = settings.pop("warpers", {})
    processors = LogitsProcessorList(settings.pop("logits_processor", []))
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **warpers, "pad_token_id": 0, "eos_token_id": settings.get("eos_token_id")})
    config._eos_token_tensor = None
    warped = model._get_logits_processor(config, input_ids_seq_length=inputs["input_ids"].shape[1], logits_processor=LogitsProcessorList())
    noise = FrozenGumbel(seeds, 0, VOCABULARY)
    own = model.generate(**inputs, do_sample=False, logits_processor=LogitsProcessorList([*processors, *warped, noise]), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.generate(
            **inputs, custom_generate=sjd2.generate, method=method, window=None if method == "ar" else window, seed=seeds,
            do_sample=True, **{"top_k": 0, **warpers}, logits_processor=processors, **settings,
        )  # fmt: skip
    return own, ours


def qwen2():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.4, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double().eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).double().eval()


def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, init_std=0.4, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config).double().eval()


def falcon(**fields):
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.4, **fields)
    return FalconForCausalLM(config).double().eval()


def gemma():
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        initializer_range=0.4,
    )  # fmt: skip
    return GemmaForCausalLM(config).double().eval()
