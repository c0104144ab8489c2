"""Pixels of Anole and Lumina-mGPT: the image tokenizer of Chameleon's release, wherever its weights are."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sjd2 import load_adapter
from sjd2.adapters.pixels import fitted_pixels, pictures
from sjd2.adapters.vqgan import VQGAN, PixelDecoder, read_vqgan
from sjd2.cli import main as sjd2
from support.chameleon import CODE_OF, CODES, PATCH, chameleon_model, vq_config, vqgan_pixels, vqgan_weights
from support.chameleon_family import PROMPTS, TARGET, load


def test_images_are_those_of_the_release(pipeline):
    output = pipeline(PROMPTS, method="mc-sjd")
    free = pipeline.adapter.layout(2).forced < 0
    codes = torch.tensor(CODE_OF)[output.tokens[free]].view(2, 4, 4)
    expected = vqgan_pixels(vqgan_weights(), codes)
    assert 0.05 < expected.std() < 5
    assert [image.tobytes() for image in output.images] == [image.tobytes() for image in pictures(expected)]
    assert [image.size for image in output.images] == [(4 * PATCH, 4 * PATCH)] * 2


def test_codes_go_through_the_vocabularys_mapping(pipeline):
    adapter, mapping = pipeline.adapter, pipeline.adapter.model.model.vocabulary_mapping
    assert adapter.codes.tolist() == [mapping.bpe2img[adapter.image_id_start + index] for index in range(CODES)] == CODE_OF
    tokens = adapter.layout(1).forced.clone()
    tokens[tokens < 0] = torch.arange(16)
    assert adapter.image_codes(tokens).flatten().tolist() == CODE_OF[:16]


def test_encode_gives_the_tokens_of_the_models_own_encoder(folders, pipelines):
    picture = Image.effect_noise((30, 20), 80).convert("RGB")
    model = chameleon_model()  # the encoder of the release, in Transformers' model
    model.model.vqmodel.load_state_dict({name: tensor for name, tensor in vqgan_weights().items() if not name.startswith("decoder.")})
    with torch.no_grad():
        expected = model.get_image_tokens(fitted_pixels([picture, picture.rotate(180)], 4 * PATCH, 4 * PATCH).double())
    assert len(expected.unique()) > 4
    for name, pipeline in pipelines.items():
        adapter = pipeline.adapter
        tokens = adapter.encode([picture, picture.rotate(180)])
        forced = adapter.layout(2).forced
        assert torch.equal(tokens[forced >= 0], forced[forced >= 0]), name
        assert torch.equal(adapter.vocabulary_ids(tokens[forced < 0]).view(2, 16), expected.long())


def test_a_decoder_among_the_models_own_weights(folders, pipelines, tmp_path):
    """Anole is published so, too."""
    shutil.copytree(folders["anole"], tmp_path / "model")
    (tmp_path / "model" / "vqgan.ckpt").unlink()
    file = tmp_path / "model" / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if ".vqmodel." not in key}
    save_file({**weights, **{f"model.vqmodel.{key}": value for key, value in vqgan_weights().items()}}, file, {"format": "pt"})
    found = load(tmp_path / "model", "anole")(PROMPTS, method="jacobi")
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in pipelines["anole"](PROMPTS, method="jacobi").images]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_named_by_the_user(folders, tmp_path, suffix):
    other, file = vqgan_weights(seed=1), tmp_path / f"other{suffix}"
    save_file(other, file) if suffix == ".safetensors" else torch.save(other, file)
    output = load(folders["lumina_mgpt"], "lumina_mgpt", vqgan=file)("a cat")
    codes = torch.tensor(CODE_OF)[output.tokens[0][output.tokens[0] < CODES]].view(1, 4, 4)
    assert output.images[0].tobytes() == pictures(vqgan_pixels(other, codes))[0].tobytes()


@pytest.fixture
def without_decoder(folders, tmp_path):
    shutil.copytree(folders["lumina_mgpt"], tmp_path / "model")
    (tmp_path / "model" / "vqgan.ckpt").unlink()
    return tmp_path / "model"


def test_without_a_decoder_the_user_is_told_at_the_start_and_gets_the_tokens(without_decoder, pipelines):
    pipeline = load(without_decoder, "lumina_mgpt")
    assert not hasattr(pipeline.adapter.model.model, "vqmodel")
    with pytest.warns(UserWarning, match="images: there will be none, only tokens: .*vqgan.ckpt"):
        output = pipeline(PROMPTS, method="ar")
    assert output.images == []
    assert torch.equal(output.tokens, pipelines["lumina_mgpt"](PROMPTS, method="ar").tokens)
    assert len(output.reports) == 2
    with pytest.raises(NotImplementedError, match=r"images: .*put its vqgan.ckpt"):
        pipeline.adapter.images(output.tokens)
    with pytest.raises(NotImplementedError, match=r"encode: .*no image tokenizer"):
        pipeline.adapter.encode([Image.new("RGB", (8, 8))])


def test_the_command_without_a_decoder(without_decoder, tmp_path, monkeypatch, capsys):
    config = json.loads((without_decoder / "config.json").read_text())
    (without_decoder / "config.json").write_text(json.dumps({**config, "sjd2": {"target_size": TARGET}}))
    monkeypatch.chdir(tmp_path)
    command = ["generate", "a cat", "--model", str(without_decoder), "--device", "cpu"]
    assert sjd2(command) == 1
    assert "error: --json: needed where there is nothing but tokens to write: lumina_mgpt's tokens become" in capsys.readouterr().err
    assert sjd2([*command, "--json", "out.json"]) == 0
    assert capsys.readouterr().out.startswith("out.json: 21 tokens in ")
    assert len(json.loads((tmp_path / "out.json").read_text())[0]["tokens"]) == 21
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.json"]


def test_anole_without_a_decoder_still_encodes(folders, tmp_path):
    shutil.copytree(folders["anole"], tmp_path / "model")
    (tmp_path / "model" / "vqgan.ckpt").unlink()
    adapter = load_adapter(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    assert "vqgan.ckpt" in adapter.missing_decoder
    assert adapter.vqgan.encoder.dtype == torch.float32
    assert adapter.encode([Image.new("RGB", (8, 8))]).shape == (1, 16)


def test_a_tokenizer_that_attends_elsewhere_is_refused():
    config = vq_config()
    config.attn_resolutions = [4]
    with pytest.raises(ValueError, match=r"vq_config: expected attention in the middle only .* got attn_resolutions \[4\]"):
        PixelDecoder(config)


def test_the_release_by_itself(tmp_path):
    torch.save({"state_dict": vqgan_weights()}, tmp_path / "vqgan.ckpt")
    vqgan = read_vqgan(vq_config(), tmp_path, dtype=torch.float64)
    codes = torch.randint(CODES, (2, 3, 5))
    with torch.no_grad():
        torch.testing.assert_close(vqgan.decoder(codes), vqgan_pixels(vqgan_weights(), codes))
    vqgan.save(tmp_path)
    assert load_file(tmp_path / "vqgan.safetensors").keys() == vqgan_weights().keys()
    assert read_vqgan(vq_config(), None) is None


def test_an_encoder_among_the_weights_of_several_files(tmp_path):
    model = chameleon_model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    vqgan = read_vqgan(vq_config(), tmp_path, dtype=torch.float64)
    assert vqgan.decoder is None
    expected = model.model.vqmodel.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vqgan.encoder.state_dict().items())


def test_vqgan_is_float32_beside_a_model_of_half_precision(folders):
    adapter = load_adapter(folders["lumina_mgpt"], device="cpu", dtype=torch.bfloat16, target_size=TARGET)
    assert isinstance(adapter.vqgan, VQGAN)
    assert {tensor.dtype for tensor in adapter.vqgan.state_dict().values()} == {torch.float32}
