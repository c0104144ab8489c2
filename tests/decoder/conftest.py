"""A random Llama and prompts of several lengths, as the door is given them."""

from __future__ import annotations

import pytest
import torch

from support.door import VOCABULARY
from support.llama import random_llama


@pytest.fixture(scope="module")
def model():
    llama = random_llama()
    llama.generation_config.eos_token_id = None
    return llama


@pytest.fixture
def inputs():
    """Three prompts of 5, 2 and 7 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate([2, 5, 0]):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def negative():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCABULARY, (3, 4), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask}
