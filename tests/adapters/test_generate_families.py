"""``sjd2.generate`` finds in the prompts of every family what its adapter's pipeline makes of them."""

from __future__ import annotations

import warnings

import pytest
import torch

import sjd2
from sjd2 import TextToImagePipeline
from support.families import FAMILIES, family_adapter

PROMPTS = ["a cat", "two red dogs in the snow"]
SEEDS = [3, 2**40]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llamagen"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_the_tokens_are_those_of_the_pipeline(tmp_path, family, guided):
    adapter = family_adapter(family, tmp_path / family)
    if family == "emu3":
        adapter.grid = (4, 5)
    sampling = {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "guidance_scale": 2.0 if guided else 1.0}
    ids = adapter.prompt_ids(PROMPTS)
    width = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
    }
    mode = {"generation_mode": "image"} if family == "janus" else {}
    negative = {"negative_prompt_ids": torch.tensor(adapter.prompt_ids([""]))} if guided and family != "janus" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = TextToImagePipeline(adapter)(PROMPTS, method="jacobi", window=8, seed=SEEDS, negative_prompt="", **sampling)
        output = sjd2.generate(
            adapter.model, **inputs, **mode, **negative, **sampling, do_sample=True, max_new_tokens=400, method="jacobi", window=8, seed=SEEDS,
            processor=getattr(adapter, "processor", None) or adapter.text,
        )  # fmt: skip
    if family == "janus":
        assert torch.equal(output, expected.tokens)
    else:
        assert torch.equal(output[:, :width], inputs["input_ids"])
        assert torch.equal(output[:, width:], adapter.vocabulary_ids(expected.tokens))


def test_glm_image_with_all_that_its_processor_gives(tmp_path):
    """Grids come as an argument, too, from which Transformers makes 3-D positions."""
    adapter = family_adapter("glm_image", tmp_path / "glm_image")
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    size = {"target_h": 64, "target_w": 64, "padding": True}
    inputs = adapter.processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=size)
    assert "image_grid_thw" in inputs
    settings = {**inputs, "do_sample": True, "max_new_tokens": 400, "method": "jacobi", "seed": SEEDS, "processor": adapter.processor}
    settings |= {"temperature": 0.8, "top_k": 9, "top_p": 0.95}
    expected = TextToImagePipeline(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = expected(PROMPTS, method="jacobi", seed=SEEDS, temperature=0.8, top_k=9, top_p=0.95, height=64, width=64).tokens
    width = inputs["input_ids"].shape[1]
    assert torch.equal(adapter.model.generate(**settings, custom_generate=sjd2.generate)[:, width:], adapter.vocabulary_ids(tokens))
    assert torch.equal(sjd2.generate(adapter.model, **settings)[:, width:], adapter.vocabulary_ids(tokens))
