"""Checkpoints of Anole and Lumina-mGPT: which of the two it is, options, saving, damaged files."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from sjd2 import TextToImagePipeline, load_adapter
from sjd2.adapters.chameleon import AnoleAdapter, LuminaMGPTAdapter
from support.chameleon import chameleon_config, chameleon_model, chameleon_tokenizer, save_chameleon, vqgan_weights
from support.chameleon_family import PROMPTS, SEEDS, TARGET, load


@pytest.mark.parametrize(
    ("fields", "options", "kind"),
    [
        ({}, {}, AnoleAdapter),
        ({"mask_image_logits": False}, {}, LuminaMGPTAdapter),
        ({"mask_image_logits": True}, {}, LuminaMGPTAdapter),
        ({"sjd2": {"adapter": "lumina_mgpt"}}, {}, LuminaMGPTAdapter),
        ({"sjd2": {"adapter": "anole"}, "mask_image_logits": False}, {}, AnoleAdapter),
        ({"mask_image_logits": False}, {"variant": "anole"}, AnoleAdapter),
        ({"sjd2": {"adapter": "anole"}}, {"variant": "lumina_mgpt"}, LuminaMGPTAdapter),
    ],
)
def test_which_of_the_two_it_is(tmp_path, fields, options, kind):
    save_chameleon(tmp_path / "model", **fields)
    adapter = load_adapter(tmp_path / "model", device="cpu", **options)
    assert type(adapter) is kind
    adapter.save_pretrained(tmp_path / "saved")
    assert type(load_adapter(tmp_path / "saved", device="cpu")) is kind


def test_saving_and_loading_gives_the_same_tokens_and_images(pipeline, tmp_path):
    pipeline.adapter.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float64)
    expected, found = (one(PROMPTS, seed=SEEDS) for one in (pipeline, again))
    assert torch.equal(found.tokens, expected.tokens)
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in expected.images]
    assert again.adapter.grid == pipeline.adapter.grid


def test_a_model_in_memory():
    model = chameleon_model()
    anole = AnoleAdapter(model, chameleon_tokenizer())
    assert TextToImagePipeline(LuminaMGPTAdapter(model, chameleon_tokenizer(), target_size=TARGET)).adapter.grid == (4, 4)
    assert anole.encode([Image.new("RGB", (8, 8))]).shape == (1, 16)
    assert anole.missing_decoder is not None


def test_a_tokenizer_from_elsewhere(folders, tmp_path):
    shutil.copytree(folders["lumina_mgpt"], tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer: expected tokenizer.json in .*Alpha-VLLM/Lumina-mGPT-7B-768"):
        load(tmp_path / "model", "lumina_mgpt")
    pipeline = load(tmp_path / "model", "lumina_mgpt", tokenizer=folders["lumina_mgpt"])
    assert pipeline.adapter.prompt_ids(PROMPTS)[0][-1] == pipeline.adapter.vocabulary["<reserved08802>"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "emu3"}, "variant: expected anole or lumina_mgpt, got 'emu3'"),
        ({"target_size": 512}, "target_size: expected none, for anole has one size, got 512"),
        ({"variant": "lumina_mgpt", "target_size": 7}, "target_size: expected a multiple of 4 pixels, got 7"),
        ({"vqgan": "nowhere.ckpt"}, "vqgan: expected a file, got 'nowhere.ckpt'"),
    ],
)
def test_bad_options_are_named(folders, options, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(folders["anole"], device="cpu", **options)


def test_damaged_files_are_named(folders, tmp_path):
    shutil.copytree(folders["lumina_mgpt"], tmp_path / "model")
    weights = vqgan_weights()
    del weights["decoder.up.1.block.0.conv1.weight"]
    torch.save({"state_dict": weights}, tmp_path / "model" / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"vqgan: 1 tensors are missing, such as decoder.up.0.block.0.conv1.weight"):
        load_adapter(tmp_path / "model", device="cpu")
    torch.save({"state_dict": {}}, tmp_path / "model" / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"vqgan: expected encoder.conv_in.weight or decoder.conv_in.weight in"):
        load_adapter(tmp_path / "model", device="cpu")
    torch.save({"state_dict": weights, "callbacks": SimpleNamespace()}, tmp_path / "model" / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"vqgan: .* holds more than tensors, which is not read"):
        load_adapter(tmp_path / "model", device="cpu")


def test_a_model_with_a_part_of_its_image_tokenizer_is_damaged(folders, tmp_path):
    shutil.copytree(folders["anole"], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.vqmodel.quant_conv.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="weights: 1 tensors are missing"):
        load_adapter(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.pop("IMGIMGAZ"), "model: expected image tokens with ids in one range"),
        (lambda names: names.pop("<reserved08799>"), "model: expected the token <reserved08799> in config.vocabulary_map, got none"),
        (lambda names: names.update({"<reserved08706>": 3}), "processor: expected a tokenizer with <reserved08706> as token 3"),
    ],
)
def test_vocabularies_without_what_images_need_are_refused(change, message):
    names = chameleon_tokenizer().get_vocab()
    change(names)
    config = chameleon_config()
    config.vocabulary_map = names
    model = ChameleonForConditionalGeneration(config)
    with pytest.raises(ValueError, match=message):
        LuminaMGPTAdapter(model, chameleon_tokenizer(), target_size=TARGET)
