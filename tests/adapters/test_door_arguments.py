"""What is given to the door of image models and cannot be: refused, by the name of what asks for it."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

import sjd2
from sjd2 import TextToImagePipeline
from support.chameleon import chameleon_tokenizer
from support.emu3 import emu3_model, emu3_processor
from support.families import family_adapter

PROMPTS = ["a cat", "a dog"]


@pytest.fixture(scope="module")
def emu3(tmp_path_factory):
    adapter = family_adapter("emu3", tmp_path_factory.mktemp("emu3") / "model")
    adapter.grid = (2, 3)
    return adapter


@pytest.fixture(scope="module")
def glm_image(tmp_path_factory):
    return family_adapter("glm_image", tmp_path_factory.mktemp("glm_image") / "model")


def call(adapter, *, own_door=False, **settings):
    ids = adapter.prompt_ids(PROMPTS)
    width = max(map(len, ids))
    settings = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
        "processor": getattr(adapter, "processor", None),
        "max_new_tokens": 4,
        "do_sample": True,
        **settings,
    }
    return adapter.model.generate(**settings, custom_generate=sjd2.generate) if own_door else sjd2.generate(adapter.model, **settings)


def test_sizes_that_contradict_the_prompt(emu3):
    """Transformers keeps them from us where it prepares the call itself: they go with pixels, of which there are none."""
    right = torch.tensor([[2, 3]] * 2)
    expected = call(emu3, seed=1)
    assert torch.equal(call(emu3, image_sizes=right, seed=1), expected)
    assert torch.equal(call(emu3, image_sizes=right.tolist(), seed=1), expected)
    assert call(emu3, image_sizes=right, num_return_sequences=2).shape[0] == 4
    for wrong in ([[3, 2]] * 2, [[2, 3], [2, 4]], [[16, 24]] * 2):
        with pytest.raises(ValueError, match=r"^image_sizes: expected what the prompts say, rows of 2\*3, got "):
            call(emu3, image_sizes=torch.tensor(wrong))


@pytest.mark.parametrize("own_door", [False, True], ids=["direct", "custom_generate"])
def test_grids_that_contradict_the_prompt(glm_image, own_door):
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    size = {"target_h": 64, "target_w": 96, "padding": True}
    inputs = dict(glm_image.processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=size))
    assert call(glm_image, own_door=own_door, **inputs).shape[0] == 2
    assert call(glm_image, own_door=own_door, **inputs, num_return_sequences=2).shape[0] == 4
    grids = inputs["image_grid_thw"].clone()
    grids[0, 1] += 1
    with pytest.raises(ValueError, match=r"^image_grid_thw: expected what the prompts say, rows of 1\*2\*3 and 1\*13\*19, got 1\*2\*3 and "):
        call(glm_image, own_door=own_door, **inputs | {"image_grid_thw": grids})


def test_a_number_of_grids_that_contradicts_the_prompt(glm_image):
    with pytest.raises(ValueError, match=r"^images_per_sample: expected what the prompts say, rows of 2, got 3"):
        call(glm_image, images_per_sample=torch.tensor([3, 3]))


def test_positions_other_than_the_prompts(glm_image):
    positions = 7 + torch.arange(max(map(len, glm_image.prompt_ids(PROMPTS)))).expand(2, -1)
    with pytest.raises(ValueError, match=r"^position_ids: expected those that follow from the attention mask, got others"):
        call(glm_image, position_ids=positions)


@pytest.mark.parametrize("family", ["emu3", "glm_image", "janus", "anole", "generic"])
@pytest.mark.parametrize("given", ["a processor", 3], ids=str)
def test_what_is_no_processor(family, given, tmp_path):
    adapter = family_adapter(family, tmp_path / family)
    mode = {"generation_mode": "image"} if family == "janus" else {}
    ids = torch.tensor(adapter.prompt_ids(PROMPTS[:1]))
    with pytest.raises(ValueError, match=rf"^processor: expected the model's .*(rocessor|tokenizer), got {type(given).__name__}"):
        sjd2.generate(adapter.model, ids, **mode, processor=given, max_new_tokens=3)


def test_a_processor_of_another_kind(emu3):
    with pytest.raises(ValueError, match=r"^processor: expected the model's Emu3Processor, got "):
        call(emu3, processor=emu3.processor.tokenizer)


@pytest.mark.parametrize("family", ["anole", "lumina_mgpt"])
def test_a_missing_processor_is_asked_for_where_nothing_works_without(family, tmp_path):
    adapter = family_adapter(family, tmp_path / family)
    ids = torch.tensor(adapter.prompt_ids(PROMPTS[:1]))
    with pytest.raises(ValueError, match=r"^processor: give the model's own, to find the image .*; as a model of words: model: expected logits"):
        sjd2.generate(adapter.model, ids, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"^processor: it found no image asked for in the prompts; as a model of words"):
        sjd2.generate(adapter.model, ids[:, :-3], max_new_tokens=3, processor=chameleon_tokenizer())


def test_a_missing_processor_of_janus(tmp_path):
    adapter = family_adapter("janus", tmp_path / "janus")
    with pytest.raises(ValueError, match=r"^generation_mode: expected none, or one that the model's adapter knows \(with processor=\), got 'image'"):
        sjd2.generate(adapter.model, torch.tensor(adapter.prompt_ids(PROMPTS[:1])), generation_mode="image", max_new_tokens=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": "2"}, "guidance_scale: expected a number, got '2'"),
        ({"window": "a"}, "window: expected a whole number >= 1, got 'a'"),
        ({"method": ["ar"]}, r"method: expected one of .*, got \['ar'\]"),
        ({"method": "sjd2", "clean": "all"}, "clean: expected a whole number >= 1, or a share of the window"),
        ({"method": "mc-sjd", "levels": 2}, "levels: only methods that denoise have it"),
        ({"callback": 3}, "callback: expected a function of a Progress, got 3"),
        ({"input_ids": "a cat"}, r"input_ids: expected a tensor \[B, P\], such as a tokenizer gives with return_tensors='pt', got 'a cat'"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids: expected int64 \[B, P\], got torch.int64 \(2,\)"),
        ({"input_ids": torch.rand(1, 2), "attention_mask": None}, r"input_ids: expected int64 \[B, P\], got torch.float32 \(1, 2\)"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64), "attention_mask": None}, r"input_ids: expected at least one id for each prompt"),
        (
            {"input_ids": torch.tensor([[5, 9999]]), "attention_mask": None},
            "input_ids: expected ids of the model's vocabulary, from 0 to 288, got 9999",
        ),
        (
            {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[300]])},
            "negative_prompt_ids: expected ids of the model's vocabulary, from 0 to 288, got 300",
        ),
    ],
)
def test_bad_arguments_are_named(emu3, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(emu3, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": "2"}, "guidance_scale: expected one number for all images, got '2'"),
        ({"temperature": [1]}, r"temperature: expected one number for all images, got \[1\]"),
        ({"top_p": None, "top_k": {}}, "top_k: expected a whole number >= 0, got {}"),
        ({"callback": "print"}, "callback: expected a function of a Progress, got 'print'"),
    ],
)
def test_bad_arguments_of_the_pipeline_are_named(emu3, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TextToImagePipeline(emu3)(PROMPTS, **settings)


@pytest.mark.parametrize(
    ("family", "marker"), [("emu3", "<|image start|>"), ("emu3", "<image>"), ("janus", "<begin_of_image>"), ("glm_image", "<|image|>")]
)
def test_a_models_own_markers_are_no_caption(family, marker, tmp_path):
    pipeline = TextToImagePipeline(family_adapter(family, tmp_path / family))
    with pytest.raises(ValueError, match=rf"^prompt: expected text, got one with the model's own markers in it \({re.escape(marker)}\): 'a "):
        pipeline(["a cat", f"a {marker} dog"])


@pytest.mark.parametrize("own_door", [False, True], ids=["direct", "custom_generate"])
def test_a_model_wrapped_by_peft(own_door):
    peft = pytest.importorskip("peft")
    processor = emu3_processor()
    model = emu3_model(processor)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    ids = processor(text=["a cat"], return_for_image_generation=True, return_tensors="pt", ratio="1:1", image_area=1024)["input_ids"]
    settings = {"input_ids": ids, "processor": processor, "do_sample": False, "max_new_tokens": 20}
    found = wrapped.generate(**settings, custom_generate=sjd2.generate) if own_door else sjd2.generate(wrapped, **settings)
    assert torch.equal(found, sjd2.generate(wrapped.get_base_model(), **settings))
    with wrapped.disable_adapter():
        assert not torch.equal(found, sjd2.generate(wrapped.get_base_model(), **settings))


def test_adapters_that_are_prompts_are_refused():
    peft = pytest.importorskip("peft")
    model = emu3_model(emu3_processor())
    settings = {"num_virtual_tokens": 2, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4, "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.PeftModelForCausalLM(model, peft.PromptTuningConfig(**settings))
    with pytest.raises(ValueError, match=r"^model: expected adapters in the model's layers, such as LoRA, got PROMPT_TUNING"):
        sjd2.generate(wrapped, torch.tensor([[1, 2]]), max_new_tokens=2)
