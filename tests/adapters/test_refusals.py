"""Models that the decoder cannot drive are refused with the reason: from a folder, before any weights are read, and wrapped in memory."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from sjd2 import TextToImagePipeline
from sjd2.adapters.generic import GenericAdapter

FIELDS = {"image_id_start": 8, "image_ids": 16, "grid": (2, 2)}
SMALL = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CASES = {
    "encoder and decoder": (
        lambda: T5Config(vocab_size=32, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2),
        "expected a decoder-only model, got the encoder-decoder model type 't5'",
    ),
    "Mistral's window": (lambda: MistralConfig(**SMALL, sliding_window=8), "got sliding_attention, which sees a part of the sequence only"),
    "Gemma's windows": (lambda: Gemma3TextConfig(**SMALL), "got sliding_attention, which sees a part of the sequence only"),
    "Mamba": (lambda: MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4), "state .*no draft can be taken out of"),
    "RecurrentGemma": (
        lambda: RecurrentGemmaConfig(**SMALL, lru_width=32),
        "full attention in every layer, got (linear|sliding)_attention",
    ),
    "linear attention": (
        lambda: Qwen3NextConfig(**SMALL, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8),
        "got linear_attention, which keeps a state that no draft can be taken out of",
    ),
    "logits that are divided": (
        lambda: GraniteConfig(**SMALL, logits_scaling=8.0),
        "expected logits that are the head's product, got logits_scaling",
    ),
    "no positions": (lambda: BloomConfig(vocab_size=32, hidden_size=32, n_layer=1, n_head=2), "expected a forward that takes position_ids"),
}
#: What a configuration alone does not show.
UNSEEN = {"no positions"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("described", [False, True], ids=["plain", "with fields"])
def test_folders_are_refused_for_what_the_model_is(tmp_path, case, described):
    """There are no weights in the folder: it is the configuration that decides."""
    config, message = CASES[case]
    config().save_pretrained(tmp_path)
    if case in UNSEEN:
        message = "cannot be loaded" if described else "expected one that an adapter exists for"
    with pytest.raises(ValueError, match=message):
        TextToImagePipeline.from_pretrained(tmp_path, adapter=FIELDS if described else None, device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_models_in_memory_are_refused_for_what_they_are(case):
    config, message = CASES[case]
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config()) if case == "encoder and decoder" else AutoModelForCausalLM.from_config(config())
    with pytest.raises(ValueError, match=f"model: {message}|model: .*{message}"):
        GenericAdapter(model, None, **FIELDS)


def test_a_head_that_is_more_than_a_product_is_refused():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BertConfig(**SMALL, is_decoder=True)).eval()
    with pytest.raises(ValueError, match=r"model: expected logits that are its head.s product .* BertLMHeadModel.forward gives others"):
        GenericAdapter(model, None, **FIELDS)


def test_a_forward_that_fails_on_rows_of_different_lengths_is_refused():
    model = AutoModelForCausalLM.from_config(
        FalconConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True)
    ).eval()
    with pytest.raises(
        ValueError, match="model: expected a backbone that takes positions and a mask for every row, got FalconModel, which fails with ValueError"
    ):
        GenericAdapter(model, None, **FIELDS)


_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", _GPT2),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("phi", {}),
        ("gemma", {}),
        ("glm4", {}),
    ],
)
def test_stock_families_are_taken(kind, more, dtype):
    """They pass the comparison with their own forward that the adapter makes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | more))).to(dtype).eval()
    assert GenericAdapter(model, None, **FIELDS).vocab_size == 16


def test_attention_without_masks_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="model: expected attn_implementation sdpa or eager, got flash_attention_2"):
        GenericAdapter(model, None, **FIELDS)


def test_a_model_whose_images_nobody_described_is_refused(tmp_path):
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected one that an adapter exists for .*, got model type 'llama'; .*image_id_start.*docs/models.md"):
        TextToImagePipeline.from_pretrained(tmp_path, device="cpu")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match="adapter: expected the fields image_id_start, image_ids, grid"):
        GenericAdapter(model, None)


def test_an_adapter_that_there_is_not_is_named(tmp_path):
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got sjd2.adapter = 'vanished'"):
        TextToImagePipeline.from_pretrained(tmp_path, adapter={"adapter": "vanished"}, device="cpu")
