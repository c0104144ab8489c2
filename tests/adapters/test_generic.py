"""Models described by fields: the tokens of their own ``generate``, pictures by a given decoder, what may be wrong with the fields."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, TrainingArguments

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.generic import GenericAdapter, ImageFields
from sjd2.denoising import NoiseLevels
from sjd2.training import NextCleanTokenModel, NoiseCollator, TuningNoise, build_trainer, save_tuned
from support.frozen_noise import FrozenGumbel
from support.generic import CODES, END_IMAGE, EOS, FIELDS, FIRST, GRID, LINE, generic_model, generic_tokenizer, save_generic, squares

PROMPTS = ["a fox", "two herons in shallow water"]
ROW = [None] * 4 + [LINE]
EXPECTED = [*ROW * 3, END_IMAGE, EOS]


class _Structure(LogitsProcessor):
    """What a trained model does by itself: marks where they belong, image ids elsewhere."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = EXPECTED[self.count]
        self.count += 1
        kept = slice(FIRST, FIRST + CODES) if token is None else slice(token, token + 1)
        structured = torch.full_like(scores, -torch.inf)
        structured[:, kept] = scores[:, kept]
        return structured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_generic(tmp_path_factory.mktemp("generic") / "model")


@pytest.fixture(scope="module")
def pipeline(folder) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(folder, adapter=FIELDS, decode=squares, device="cpu", dtype=torch.float64)


def own_generate(pipeline, prompt: str, guidance_scale: float, seed: int | None) -> list[int]:
    """Slice ids as the model's own code makes them, guided by Transformers' processor."""
    text, model = pipeline.adapter.text, pipeline.adapter.model
    processors = [_Structure()] if seed is None else [FrozenGumbel([seed], FIRST, CODES, others=True), _Structure()]
    inputs = text(f"<bos>{prompt}<image>", return_tensors="pt")["input_ids"]
    negative = text("<bos><none><image>", return_tensors="pt")["input_ids"]
    found = model.generate(
        inputs, max_new_tokens=len(EXPECTED), do_sample=False, guidance_scale=guidance_scale, negative_prompt_ids=negative,
        logits_processor=processors,
    )  # fmt: skip
    structural = {LINE: CODES, END_IMAGE: CODES + 1, EOS: CODES + 2}
    return [structural.get(token, token - FIRST) for token in found[0, inputs.shape[1] :].tolist()]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("seed", [None, 7])
def test_tokens_are_those_of_the_models_own_generate(pipeline, guidance_scale, seed):
    settings = {"temperature": 0.0 if seed is None else 1.0, "top_k": 0, "guidance_scale": guidance_scale}
    output = pipeline(PROMPTS, method="ar", seed=[seed or 0] * 2, **settings)
    assert output.tokens.tolist() == [own_generate(pipeline, prompt, guidance_scale, seed) for prompt in PROMPTS]


def test_jacobi_gives_the_tokens_of_ar(pipeline):
    expected = pipeline(PROMPTS, method="ar", seed=1)
    result = pipeline(PROMPTS, method="jacobi", seed=1)
    assert result.tokens.tolist() == expected.tokens.tolist()
    assert sum(report.forwards for report in result.reports) < 2 * len(EXPECTED)


@pytest.mark.parametrize("method", [name for name, preset in PRESETS.items() if preset.exact != "none" and name != "ar"])
def test_greedy_tokens_are_the_same_with_every_lossless_method(pipeline, method):
    expected = pipeline(PROMPTS, method="ar", temperature=0.0).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not tuned for sjd2
        assert pipeline(PROMPTS, method=method, temperature=0.0, window=8).tokens.tolist() == expected.tolist()


def test_a_batch_of_mixed_prompts_equals_single_runs(pipeline):
    both = pipeline(PROMPTS, seed=[3, 4]).tokens.tolist()
    assert [pipeline(prompt, seed=seed).tokens[0].tolist() for prompt, seed in zip(PROMPTS, (3, 4), strict=True)] == both


def test_pictures_are_what_the_given_decoder_makes(pipeline):
    output = pipeline("a fox", height=6, width=8)
    assert output.images[0].size == (8, 6)
    codes = output.tokens[0][: 3 * 5].view(3, 5)[:, :4]
    grey = (codes / (CODES - 1) * 255).round().to(torch.uint8)
    assert np.asarray(output.images[0])[::2, ::2, 0].tolist() == grey.tolist()


def test_defaults_are_the_fields(pipeline):
    defaults = pipeline.adapter.defaults
    assert (defaults.guidance_scale, defaults.top_k, defaults.temperature, defaults.top_p) == (2.0, 20, 1.0, 1.0)
    assert pipeline.adapter.prompt_ids(["", "x"]) == [[257, 262 + CODES, 258], pipeline.adapter.text("<bos>x<image>")["input_ids"]]


def test_a_negative_prompt_takes_the_place_of_the_unconditional_text(pipeline):
    _, negative = pipeline.adapter.prompt(["a fox"], ["fog"]).lengths.tolist()
    assert negative == len(pipeline.adapter.text("<bos>fog<image>")["input_ids"])


def test_without_a_decoder_there_are_tokens_only(folder):
    pipeline = TextToImagePipeline.from_pretrained(folder, adapter=FIELDS, device="cpu")
    with pytest.warns(UserWarning, match="there will be none, only tokens: give the model's own decoder as decode="):
        output = pipeline("a fox")
    assert (output.images, output.tokens.shape) == ([], (1, len(EXPECTED)))
    with pytest.raises(NotImplementedError, match="decode="):
        pipeline.adapter.images(output.tokens)
    with pytest.raises(NotImplementedError, match="tune it from tokens"):
        pipeline.adapter.encode([])


def test_a_model_in_memory_and_fields_by_keyword_are_the_same(pipeline):
    adapter = GenericAdapter(generic_model(), generic_tokenizer(), squares, **FIELDS)
    assert TextToImagePipeline(adapter)(PROMPTS, seed=1).tokens.tolist() == pipeline(PROMPTS, seed=1).tokens.tolist()


def test_fields_may_stand_in_the_configuration_and_are_saved_there(pipeline, tmp_path):
    stored = save_generic(tmp_path / "stored", {"adapter": "generic", **FIELDS})
    adapter = load_adapter(stored, device="cpu", dtype=torch.float64)
    adapter.save_pretrained(tmp_path / "saved")
    for place in (stored, tmp_path / "saved"):
        again = TextToImagePipeline.from_pretrained(place, decode=squares, device="cpu", dtype=torch.float64)
        assert again("a fox", seed=1).tokens.tolist() == pipeline("a fox", seed=1).tokens.tolist()
    entry = json.loads((tmp_path / "saved" / "config.json").read_text())["sjd2"]
    assert entry["adapter"] == "generic"
    assert {name: entry[name] for name in FIELDS} == FIELDS


def test_fields_given_go_before_stored_ones(tmp_path):
    stored = save_generic(tmp_path / "stored", {"adapter": "generic", **FIELDS})
    assert load_adapter(stored, adapter={"grid": (2, 2)}, device="cpu").layout(1).forced.shape == (1, 2 * 3 + 2)


def test_tuning_from_tokens(folder, tmp_path):
    adapter = load_adapter(folder, adapter=FIELDS, device="cpu", dtype=torch.float32)
    adapter.model.requires_grad_(True)
    noise = TuningNoise(NoiseLevels.karras(2), windows=2, window=6, segment=(1, 2))
    tokens = torch.where(adapter.layout(1).forced < 0, torch.arange(len(EXPECTED)) % 7, adapter.layout(1).forced)[0].tolist()
    arguments = TrainingArguments(
        str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=8, per_device_train_batch_size=2, learning_rate=1e-2,
        logging_steps=1,
    )  # fmt: skip
    data = [{"prompt": PROMPTS[i % 2], "tokens": tokens} for i in range(4)]
    trainer = build_trainer(NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise), data, None, arguments)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    save_tuned(adapter, noise, tmp_path / "tuned")
    tuned = load_adapter(tmp_path / "tuned", device="cpu", dtype=torch.float32)
    assert tuned.denoising == noise.denoising
    expected = TextToImagePipeline(GenericAdapter(adapter.model, adapter.text, squares))("a fox", method="sjd2").tokens
    assert TextToImagePipeline(GenericAdapter(tuned.model, tuned.text, squares))("a fox", method="sjd2").tokens.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": [3, 4]}, "adapter: expected fields of image_id_start, image_ids, grid, .*, got grids"),
        ({"image_ids": None}, r"adapter.image_ids: expected a whole number >= 1, got None"),
        ({"image_id_start": -1}, "adapter.image_id_start: expected a whole number >= 0, got -1"),
        ({"image_ids": CODES + 2}, r"adapter.image_ids: expected ids below 287, the size of the vocabulary, got 262 … 287"),
        ({"grid": [3]}, r"adapter.grid: expected a list of 2 whole numbers >= 1, got \[3\]"),
        ({"grid": [3, 0]}, "adapter.grid: expected a list of 2 whole numbers"),
        ({"row_end": LINE}, "adapter.row_end: expected a list of any number of whole numbers >= 0, got 259"),
        ({"row_end": [FIRST]}, "adapter.row_end: expected ids of the vocabulary that are no image ids, got 262"),
        ({"end": [999]}, "adapter.end: expected ids of the vocabulary that are no image ids, got 999"),
        ({"prompt": "a picture"}, "adapter.prompt: expected text with {prompt} in it, got 'a picture'"),
        ({"patch": 0}, "adapter.patch: expected a whole number >= 1, got 0"),
        ({"temperature": -1}, "adapter.temperature: expected a finite number >= 0, got -1"),
        ({"top_k": "many"}, "adapter.top_k: expected a number, got 'many'"),
    ],
)
def test_fields_that_cannot_be_are_errors(folder, change, message):
    with pytest.raises(ValueError, match=message):
        GenericAdapter(generic_model(), generic_tokenizer(), **(FIELDS | change))
    with pytest.raises(ValueError, match=message):
        load_adapter(folder, adapter=FIELDS | change, device="cpu")


def test_missing_fields_are_named(folder):
    with pytest.raises(ValueError, match="adapter: expected the fields image_ids, grid, got none of that name"):
        load_adapter(folder, adapter={"image_id_start": 5}, device="cpu")
    with pytest.raises(ValueError, match="adapter: expected fields by name, got 'generic'"):
        load_adapter(folder, adapter="generic", device="cpu")


def test_prompts_and_sizes_that_cannot_be_are_errors(pipeline, folder):
    with pytest.raises(ValueError, match="prompt: expected a caption, got an empty string"):
        pipeline(" ")
    with pytest.raises(ValueError, match="prompt: expected one that leaves room for an image, at most 111 tokens, got 202"):
        pipeline("a" * 200)
    with pytest.raises(ValueError, match="height: the model makes images of 6×8 pixels only, got 8"):
        pipeline("a fox", height=8)
    unsized = load_adapter(folder, adapter={name: value for name, value in FIELDS.items() if name != "patch"}, device="cpu")
    assert unsized.grid_of(None, None) == GRID
    with pytest.raises(ValueError, match="width: expected none for a model whose field patch"):
        unsized.grid_of(None, 8)


def test_a_prompt_without_tokens_is_an_error(folder):
    adapter = load_adapter(folder, adapter={**FIELDS, "prompt": "{prompt}", "unconditional": None}, device="cpu")
    with pytest.raises(ValueError, match=r"adapter.prompt: expected text of at least one token before an image, got ''"):
        adapter.prompt(["a fox"], [""])


def test_the_documented_fields_are_those_that_there_are(request):
    text = (Path(request.config.rootpath) / "docs" / "models.md").read_text()
    table = text.split("| field | |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(field.name for field in fields(ImageFields))
