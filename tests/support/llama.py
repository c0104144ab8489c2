"""A random stock Llama, small and in float64, behind the adapter that drives real ones."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.decoding import Prompt

FIRST_IMAGE_ID, IMAGE_IDS = 5, 32


def random_llama(*, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=FIRST_IMAGE_ID + IMAGE_IDS + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=256, initializer_range=0.4, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def sliced(model: LlamaForCausalLM) -> SlicedCausalLM:
    return SlicedCausalLM(model, FIRST_IMAGE_ID, IMAGE_IDS)


def random_prompt(adapter: SlicedCausalLM, lengths: list[int]) -> tuple[Prompt, list[torch.Tensor]]:
    """Prompts of the given lengths, and their ids."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(adapter.model.config.vocab_size, (length,), generator=generator) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return Prompt(adapter.embed_ids(padded), torch.tensor(lengths)), ids
