"""Image models through ``sjd2.generate``: the layout is found in the prompt, the tokens are those of the model's own ``generate``."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

import sjd2
from sjd2 import load_adapter
from sjd2.adapters import SamplingDefaults
from sjd2.adapters.registry import EMBEDDED_MODEL
from support.emu3 import CODES, emu3_model, emu3_processor
from support.frozen_noise import FrozenGumbel

ROWS, COLUMNS = 4, 5
SEEDS = [3, 2**40]


@pytest.fixture(scope="module")
def processor():
    return emu3_processor()


@pytest.fixture(scope="module")
def emu3(processor):
    return emu3_model(processor)


def emu3_call(model, processor, *, constrained=True):
    """Arguments of ``generate`` as the model's documentation has them."""
    text, size = processor.tokenizer, {"ratio": f"{COLUMNS}:{ROWS}", "image_area": ROWS * COLUMNS * 64}
    inputs, negative = (
        processor(text=prompts, return_for_image_generation=True, return_tensors="pt", padding=True, **size)
        for prompts in (["a cat", "two red dogs in the snow"], ["blurry"] * 2)
    )
    wrapper = text.convert_tokens_to_ids("<|image token|>")
    ends = [text.convert_tokens_to_ids(name) for name in ("<|extra_201|>", "<|image end|>", "<|extra_204|>")]

    def allowed(_, ids):
        place = len(ids) - 1 - int((ids == wrapper).nonzero()[0])
        if place >= ROWS * (COLUMNS + 1):
            return [ends[place - ROWS * (COLUMNS + 1)]]
        if place % (COLUMNS + 1) == COLUMNS:
            return [text.convert_tokens_to_ids("<|extra_200|>")]
        return model.vocabulary_mapping.image_tokens

    return {
        **{name: inputs[name] for name in ("input_ids", "attention_mask")},
        "negative_prompt_ids": negative.input_ids,
        "negative_prompt_attention_mask": negative.attention_mask,
        "guidance_scale": 3.0,
        "max_new_tokens": 500,
        "pad_token_id": text.pad_token_id,
        "eos_token_id": text.eos_token_id,
        **({"prefix_allowed_tokens_fn": allowed} if constrained else {}),
    }


@pytest.mark.parametrize("told", ["by the constraint", "by the processor", "by both"])
@pytest.mark.parametrize("method", ["jacobi", "mc-sjd"])
def test_emu3_greedily(emu3, processor, told, method):
    own = emu3.generate(**emu3_call(emu3, processor), do_sample=False)
    call = emu3_call(emu3, processor, constrained=told != "by the processor")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if told == "by the processor" else "ignore")
        ours = emu3.generate(
            **call, do_sample=False, custom_generate=sjd2.generate, method=method, window=7,
            processor=None if told == "by the constraint" else processor,
        )  # fmt: skip
    assert ours.shape[1] - call["input_ids"].shape[1] == ROWS * (COLUMNS + 1) + 3
    assert torch.equal(own, ours)


def test_emu3_with_the_same_noise(emu3, processor):
    noise = FrozenGumbel(SEEDS, emu3.vocabulary_mapping.image_tokens[0], CODES, others=True)
    warpers = [TemperatureLogitsWarper(0.8), TopKLogitsWarper(9)]
    own = emu3.generate(**emu3_call(emu3, processor), do_sample=False, logits_processor=LogitsProcessorList([*warpers, noise]))
    call = emu3_call(emu3, processor, constrained=False)
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 9, "method": "jacobi", "seed": SEEDS, "processor": processor}
    assert torch.equal(emu3.generate(**call, custom_generate=sjd2.generate, **settings), own)
    assert torch.equal(sjd2.generate(emu3, **call, **settings), own)


def test_emu3_sizes(emu3, processor):
    call = emu3_call(emu3, processor, constrained=False)
    sizes = torch.tensor([[ROWS, COLUMNS]] * 2)  # the processor's third output, which its snippet takes out
    settings = {"processor": processor, "do_sample": False}
    whole = sjd2.generate(emu3, **call, **settings)
    assert torch.equal(sjd2.generate(emu3, **call, image_sizes=sizes, **settings), whole)
    assert torch.equal(sjd2.generate(emu3, **{**call, "max_new_tokens": 9}, **settings), whole[:, : call["input_ids"].shape[1] + 9])
    other = call["input_ids"].clone()
    place = int((other[0] == processor.tokenizer.convert_tokens_to_ids("<|image start|>")).nonzero()[0])
    other[0, place + 1] = processor.tokenizer.convert_tokens_to_ids("7")
    with pytest.raises(ValueError, match=r"^input_ids: expected prompts of one image size, got"):
        sjd2.generate(emu3, **{**call, "input_ids": other}, **settings)


def test_emu3_text(emu3, processor):
    """What asks for no image is decoded over the whole vocabulary."""
    inputs = processor(text=["what is it?"], return_tensors="pt")
    settings = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask, "do_sample": False, "max_new_tokens": 12}
    own = emu3.generate(**settings)
    assert torch.equal(emu3.generate(**settings, custom_generate=sjd2.generate, method="jacobi", processor=processor), own)
    with pytest.raises(ValueError, match=r"^pixel_values: expected a prompt of token ids alone"):
        sjd2.generate(emu3, **settings, pixel_values=torch.zeros(1, 3, 16, 16, dtype=torch.float64), image_sizes=torch.tensor([[16, 16]]))


@pytest.fixture(scope="module")
def tiny_scenes():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float64)


@pytest.mark.parametrize("method", ["jacobi", "mc-sjd"])
def test_tiny_scenes_as_the_pipeline_has_it(tiny_scenes, exact_pipeline, method):
    adapter, prompts = exact_pipeline.adapter, ["a red coat on a yellow background", "a bag"]
    inputs = adapter.text(prompts, return_tensors="pt", padding=True)
    empty = adapter.text([""], return_tensors="pt")
    defaults: SamplingDefaults = adapter.defaults
    settings = {
        "do_sample": True, "temperature": defaults.temperature, "top_k": defaults.top_k, "guidance_scale": defaults.guidance_scale,
        "negative_prompt_ids": empty.input_ids, "max_new_tokens": 400, "seed": 5, "method": method,
    }  # fmt: skip
    ids = tiny_scenes.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, custom_generate=sjd2.generate, **settings)
    expected = exact_pipeline(prompts, method=method, seed=5).tokens
    assert torch.equal(ids[:, : inputs.input_ids.shape[1]], inputs.input_ids)
    assert torch.equal(ids[:, inputs.input_ids.shape[1] :] - adapter.image_id_start, expected)


def test_tiny_scenes_in_the_middle_of_an_image(tiny_scenes):
    """A prompt that holds image tokens asks for no image of its own: any id may follow."""
    ids = torch.tensor([[1, 10, 2, 70, 80, 90]])
    settings = {"do_sample": False, "max_new_tokens": 8}
    assert torch.equal(tiny_scenes.generate(ids, custom_generate=sjd2.generate, **settings), tiny_scenes.generate(ids, **settings))


def test_processors_see_the_whole_vocabulary_of_an_image_model(tiny_scenes):
    """Ids of the vocabulary, not of the slice, in ``input_ids`` and scores alike."""
    seen = []

    def nothing_twice(ids, scores):
        seen.append((ids[0, -1].item(), scores.shape[-1]))
        return scores.scatter(1, ids, -torch.inf)

    inputs = load_adapter(None, device="cpu").text(["a bag"], return_tensors="pt")
    with pytest.warns(UserWarning, match="function applied to every slot"):
        ids = sjd2.generate(
            tiny_scenes, inputs.input_ids, max_new_tokens=20, method="jacobi", window=4, seed=0, do_sample=True, top_k=50,
            logits_processor=[nothing_twice],
        )  # fmt: skip
    new = ids[0, inputs.input_ids.shape[1] :].tolist()
    assert len(set(new)) == 20
    assert min(new) >= 64
    assert {size for _, size in seen} == {1064}
    assert {last for last, _ in seen} >= set(new[:-1])


def janus():
    text = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 16,
        "depth": 1,
    }
    codes = {"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 8}
    torch.manual_seed(0)
    sizes = {"projection_dim": 16, "image_token_embed_dim": 16, "num_patches": 2, "double_latent": False}
    config = JanusConfig(text_config=text, vision_config={**vision, "intermediate_size": 16, "num_image_tokens": 4}, vq_config={**codes, **sizes})
    model = JanusForConditionalGeneration(config).double().eval()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, generation_kwargs={"boi_token_id": 5})
    return model


def test_janus_writes_text_by_either_door_and_refuses_custom_generate_for_images():
    """docs/drop_in.md quotes what Transformers says: it raises before anything of this package is called."""
    model, ids = janus(), torch.randint(6, 60, (1, 5))
    settings = {"do_sample": False, "max_new_tokens": 8}
    own = model.generate(ids, generation_mode="text", **settings)
    assert torch.equal(model.generate(ids, generation_mode="text", custom_generate=sjd2.generate, **settings), own)
    assert torch.equal(sjd2.generate(model, ids, generation_mode="text", **settings), own)
    with pytest.raises(ValueError, match=r"The following `model_kwargs` are not used by the model: \['custom_generate', 'method'\]"):
        model.generate(ids, generation_mode="image", custom_generate=sjd2.generate, method="mc-sjd")
