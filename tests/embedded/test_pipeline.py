"""The Python door, with the model that ships with the package."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

from sjd2 import PRESETS, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.judge import background_colour
from sjd2.tiny_scenes.prompts import COLOURS, held_out_prompts, parse_prompt

PROMPT = "a red coat on a yellow background"


def test_a_prompt_becomes_a_picture_of_it(pipeline):
    output = pipeline(PROMPT, seed=1)
    (image,), (report,) = output.images, output.reports
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert output.tokens.shape == (1, 256)
    assert output.tokens[0].tolist() == report.tokens
    assert (report.prompt, report.method, report.seed) == (PROMPT, "mc-sjd", 1)
    assert report.forwards < 128
    assert report.tokens_per_forward == 256 / report.forwards
    assert 0 < report.accepted_per_forward < report.tokens_per_forward
    assert 0 < report.forward_seconds < report.seconds


def test_backgrounds_have_the_colour_asked_for(pipeline):
    prompts = held_out_prompts(24)
    output = pipeline(prompts, batch_size=24)
    found = background_colour(pipeline.adapter.pixels(output.tokens)).tolist()
    right = sum(list(COLOURS)[index] == parse_prompt(prompt)[2] for index, prompt in zip(found, prompts, strict=True))
    assert right >= 20  # of 24; the model card has the share over many more


def test_jacobi_gives_the_tokens_of_ar_in_float64(exact_pipeline):
    prompts = held_out_prompts(4)
    expected = exact_pipeline(prompts, method="ar", seed=100).tokens
    for window in (8, 32, 64):
        output = exact_pipeline(prompts, method="jacobi", window=window, seed=100)
        assert torch.equal(output.tokens, expected)
        assert max(report.forwards for report in output.reports) < 256


@pytest.mark.full
@pytest.mark.parametrize("window", [8, 32, 64])
def test_jacobi_gives_the_tokens_of_ar_in_float64_for_64_images(exact_pipeline, window):
    prompts = held_out_prompts(64)
    expected = exact_pipeline(prompts, method="ar", seed=1000, batch_size=64)
    output = exact_pipeline(prompts, method="jacobi", window=window, seed=1000, batch_size=64)
    assert torch.equal(output.tokens, expected.tokens)


@pytest.mark.parametrize("method", [name for name in PRESETS if name != "ar"])
def test_every_method_takes_fewer_forwards_than_ar(pipeline, method):
    output = pipeline(held_out_prompts(4), method=method)
    mean = sum(report.tokens_per_forward for report in output.reports) / 4
    assert mean > 1.8


def test_an_image_depends_on_its_prompt_and_seed_and_not_on_its_batch(exact_pipeline):
    prompts = held_out_prompts(3)
    together = exact_pipeline(prompts, seed=7)
    alone = exact_pipeline(prompts[2], seed=9)
    assert together.reports[2].tokens == alone.reports[0].tokens
    one_by_one = exact_pipeline(prompts, seed=[7, 8, 9], batch_size=1)
    assert torch.equal(one_by_one.tokens, together.tokens)


def test_tiny_temperatures_are_greedy(pipeline):
    greedy = pipeline(PROMPT, temperature=0.0, method="jacobi").tokens
    for temperature in (1e-12, 1e-30, 1e-45):
        assert torch.equal(pipeline(PROMPT, temperature=temperature, method="jacobi").tokens, greedy)


def test_ar_accepts_no_draft(pipeline):
    assert pipeline(PROMPT, method="ar").reports[0].accepted_per_forward == 0


def test_num_images_counts_seeds_up(pipeline):
    output = pipeline([PROMPT, "a bag"], num_images_per_prompt=2, seed=5, method="jacobi")
    assert [(report.prompt, report.seed) for report in output.reports] == [(PROMPT, 5), (PROMPT, 6), ("a bag", 7), ("a bag", 8)]
    assert output.reports[0].tokens != output.reports[1].tokens


def test_guidance_scale_1_runs_without_the_unconditional_branch(pipeline, monkeypatch):
    seen = []
    forward = pipeline.adapter.forward
    monkeypatch.setattr(pipeline.adapter, "forward", lambda embeds, *rest, **named: seen.append(len(embeds)) or forward(embeds, *rest, **named))
    pipeline(PROMPT, guidance_scale=1.0, method="jacobi")
    assert set(seen) == {1}
    seen.clear()
    pipeline(PROMPT, guidance_scale=2.0, method="jacobi")
    assert set(seen) == {2}


def test_words_the_model_does_not_know_are_named(pipeline):
    with pytest.warns(UserWarning, match="prompt: the model does not know shiny, umbrella"):
        pipeline("a shiny umbrella on a red background", method="jacobi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline("A grey T shirt, on a red background.", method="jacobi")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "prompt: expected a caption, got an empty string"),
        ({"prompt": []}, "prompt: expected at least one, got none"),
        ({"prompt": "a red coat " * 20}, "prompt: expected at most 30 words, got 60"),
        ({"prompt": [PROMPT, PROMPT, " "], "batch_size": 1}, "prompt: expected a caption, got an empty string"),
        ({"prompt": [PROMPT, "coat " * 31], "batch_size": 1}, "prompt: expected at most 30 words, got 31"),
        ({"negative_prompt": "coat " * 31}, "prompt: expected at most 30 words, got 31"),
        ({"method": "magic"}, "method: expected one of ar, "),
        ({"window": 0}, "window: expected a whole number >= 1, got 0"),
        ({"window": 10_000}, "window: expected at most the model.s 512 positions, got 10000"),
        ({"temperature": -1.0}, "temperature: expected a finite number >= 0, got -1.0"),
        ({"top_k": -5}, "top_k: expected a whole number >= 0, got -5"),
        ({"top_p": 0.0}, "top_p: expected a number in"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a number between -1e6 and 1e6, got nan"),
        ({"seed": -1}, "seed: expected a whole number in"),
        ({"seed": 1.7}, "seed: expected a whole number in .*, got 1.7"),
        ({"prompt": ["a bag", None]}, "prompt: expected text, got None"),
        ({"num_images_per_prompt": 2.5}, "num_images_per_prompt: expected a whole number >= 1, got 2.5"),
        ({"top_k": float("inf")}, "top_k: expected a whole number >= 0, got inf"),
        ({"seed": [1, 2]}, "seed: expected one number or 1 .one per image., got 2"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: expected a whole number >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_are_named_before_any_work(pipeline, monkeypatch, settings, message):
    if settings.get("window") != 10_000:
        monkeypatch.setattr(pipeline.adapter, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pipeline(**({"prompt": PROMPT} | settings))


def test_the_pipeline_works_after_an_interrupt(pipeline):
    expected = pipeline(PROMPT, seed=3).tokens

    def interrupt(progress):
        if progress.iteration == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(PROMPT, seed=3, callback=interrupt)
    assert torch.equal(pipeline(PROMPT, seed=3).tokens, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_pipeline_works_after_logits_that_were_not_finite(pipeline, monkeypatch, bad):
    expected = pipeline(PROMPT, seed=3).tokens
    with monkeypatch.context() as patch:
        forward = pipeline.adapter.forward
        patch.setattr(
            pipeline.adapter, "forward", lambda embeds, cache, **outputs: forward(embeds, cache, **outputs).index_fill(-1, torch.tensor(9), bad)
        )
        with pytest.raises(FloatingPointError, match=r"logits: expected finite values .* in row 0 within iteration 1"):
            pipeline(PROMPT, seed=3)
    assert torch.equal(pipeline(PROMPT, seed=3).tokens, expected)


def test_a_row_with_every_id_masked_is_an_error(pipeline, monkeypatch):
    forward = pipeline.adapter.forward
    monkeypatch.setattr(pipeline.adapter, "forward", lambda embeds, cache, **outputs: torch.full_like(forward(embeds, cache, **outputs), -torch.inf))
    with pytest.raises(FloatingPointError, match=r"got NaN, .inf or a fully masked distribution in row 0"):
        pipeline(PROMPT)


def test_a_folder_loads_like_the_embedded_model(pipeline, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, copy)
    assert torch.equal(TextToImagePipeline.from_pretrained(copy, device="cpu")(PROMPT).tokens, pipeline(PROMPT).tokens)


def _drop(name):
    return lambda folder: (folder / name).unlink()


def _cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def _other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["sjd2"]
    (folder / "config.json").write_text(json.dumps(config))


def _larger_model(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("config.json"), "has no readable config.json"),
        (_drop("model.safetensors"), "cannot be loaded: .*model.safetensors"),
        (_cut("model.safetensors"), "cannot be loaded"),
        (_cut("fsq.safetensors"), "image tokenizer: .*unreadable"),
        (_drop("fsq.safetensors"), "image tokenizer: expected fsq.safetensors"),
        (_other_model, "model: expected one that an adapter exists for .tiny_scenes, .*, got model type 'llama'"),
        (_larger_model, "weights: 9 tensors are missing"),
    ],
    ids=["no config", "no weights", "cut weights", "cut tokenizer", "no tokenizer", "no adapter", "missing tensors"],
)
def test_damaged_folders_say_what_is_wrong(tmp_path, damage, message):
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, copy)
    damage(copy)
    with pytest.raises(ValueError, match=message):
        TextToImagePipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["/nothing/here", "./nothing", "~/nothing", "a/b/c"])
def test_a_model_that_is_nowhere_is_not_found(name):
    with pytest.raises(FileNotFoundError, match="model: expected a folder or a hub name"):
        TextToImagePipeline.from_pretrained(name)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"device: expected one of cpu.*, got '{device}'"):
        TextToImagePipeline.from_pretrained(device=device)


def test_tokens_can_be_written_to_and_drawn_again(pipeline):
    output = pipeline(PROMPT)
    output.tokens[0, 0] = 0
    assert pipeline.adapter.images(output.tokens)[0].size == (32, 32)
