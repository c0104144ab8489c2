"""Anole and Lumina-mGPT on a tiny random Chameleon in float64: against the model's own ``generate``, layout, pixels, tuning."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor, LogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.adapters.chameleon import AnoleAdapter, LuminaMGPTAdapter
from sjd2.adapters.pixels import fitted_pixels, pictures
from sjd2.adapters.vqgan import VQGAN, PixelDecoder, read_vqgan
from sjd2.cli import main as sjd2
from sjd2.training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from support.chameleon import (
    CODE_OF,
    CODES,
    PATCH,
    chameleon_config,
    chameleon_model,
    chameleon_tokenizer,
    save_chameleon,
    vq_config,
    vqgan_pixels,
    vqgan_weights,
)
from support.frozen_noise import FrozenGumbel

PROMPTS = ["a cat", "two red dogs in the snow"]
SEEDS = [3, 2**40]
#: Lumina-mGPT's side of the square: two units, four tokens.
TARGET = 4 * PATCH
VARIANTS = ["anole", "lumina_mgpt"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of Lumina-mGPT as it is published, without any part of an image tokenizer; both with the file of the release."""
    found = {}
    for name in VARIANTS:
        folder = found[name] = tmp_path_factory.mktemp(name)
        save_chameleon(folder, **({"mask_image_logits": False} if name == "lumina_mgpt" else {}))
        if name == "lumina_mgpt":
            weights = load_file(folder / "model.safetensors")
            save_file({key: value for key, value in weights.items() if ".vqmodel." not in key}, folder / "model.safetensors", {"format": "pt"})
            (folder / "processor_config.json").unlink()
        torch.save({"state_dict": vqgan_weights(), "epoch": 3}, folder / "vqgan.ckpt")
    return found


def load(folder, name, **options):
    size = {"target_size": TARGET} if name == "lumina_mgpt" else {}
    return TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64, **size, **options)


@pytest.fixture(scope="module")
def pipelines(folders):
    return {name: load(folder, name) for name, folder in folders.items()}


@pytest.fixture(params=VARIANTS)
def pipeline(request, pipelines):
    return pipelines[request.param]


class Unmasked(ChameleonForConditionalGeneration):
    """The same model with logits for image tokens."""

    def forward(self, input_ids=None, logits_to_keep=0, labels=None, **inputs):
        output = self.model(input_ids=input_ids, **inputs)
        return CausalLMOutputWithPast(logits=self.lm_head(output.last_hidden_state), past_key_values=output.past_key_values)


class Format(LogitsProcessor):
    """What the inference code of both models does: image ids, and the tokens between and behind them by counting."""

    def __init__(self, adapter, grid):
        self.adapter, (self.rows, self.columns), self.count = adapter, grid, 0

    def __call__(self, input_ids, scores):
        place, self.count = self.count, self.count + 1
        vocabulary, only = self.adapter.vocabulary, None
        if self.adapter.name == "lumina_mgpt":
            if place == self.rows * (self.columns + 1):
                only = vocabulary["<eoss>"]
            elif (place + 1) % (self.columns + 1) == 0:
                only = vocabulary["<reserved08799>"]
        allowed = sorted(self.adapter.model.model.vocabulary_mapping.image_tokens) if only is None else [only]
        kept = torch.full_like(scores, -torch.inf)
        kept[:, allowed] = scores[:, allowed] if only is None else 0.0
        return kept


def own_prompts(adapter, grid):
    """Conditional and unconditional ids, by hand."""
    bos, boi, sep = (adapter.vocabulary[name] for name in ("<s>", "<racm3:break>", "<reserved08706>"))
    if adapter.name == "anole":
        return [[bos, *(adapter.text(text)["input_ids"]), sep, boi] for text in PROMPTS], [bos, boi]
    rows, columns = grid
    image = [boi, adapter.vocabulary[f"<reserved{8800 + rows // 2:05d}>"], adapter.vocabulary[f"<reserved{8800 + columns // 2:05d}>"]]
    request = f"Generate an image of {columns * PATCH}x{rows * PATCH} according to the following prompt:\n"
    return [[bos, *adapter.text(request + text)["input_ids"], sep, *image] for text in PROMPTS], image


def own_generate(adapter, grid, *, seeds=None, guidance_scale=3.0):
    """Vocabulary ids of the image by the model's own ``generate``, with the mask lifted."""
    model = Unmasked(adapter.model.config).double().eval()
    assert not model.load_state_dict(adapter.model.state_dict(), strict=False).unexpected_keys
    prompts, unconditional = own_prompts(adapter, grid)
    width, pad = max(map(len, prompts)), adapter.vocabulary["<pad>"]
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    noise = [FrozenGumbel(seeds, adapter.image_id_start, CODES)] if seeds else []
    output = model.generate(
        ids,
        attention_mask=mask,
        negative_prompt_ids=torch.tensor([unconditional] * len(prompts)),
        guidance_scale=guidance_scale,
        logits_processor=[*noise, Format(adapter, grid)],
        max_new_tokens=adapter.layout(1, grid).forced.shape[1],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=pad,
    )
    return output[:, width:]


def expected_for(pipeline, **settings):
    return own_generate(pipeline.adapter, pipeline.adapter.grid, **settings)


def test_the_top_level_forward_hides_what_the_adapter_finds(pipeline):
    adapter = pipeline.adapter
    ids = torch.tensor(adapter.prompt_ids(PROMPTS[:1]))
    image = slice(adapter.image_id_start, adapter.image_id_start + CODES)
    with torch.no_grad():
        hidden = adapter.model(ids).logits[..., image]
        expected = adapter.model.lm_head(adapter.model.model(ids).last_hidden_state)[..., image]
        count = ids.shape[1]
        causal = torch.ones(1, 1, count, count, dtype=torch.bool).tril()
        found = adapter.logits(adapter.embed_ids(ids), causal, torch.arange(count)[None])
    assert (hidden == torch.finfo(torch.float64).min).all()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_greedy_equals_the_models_own_generate(pipeline):
    expected = expected_for(pipeline)
    for method in [name for name in PRESETS if PRESETS[name].exact != "none" and PRESETS[name].denoising is None]:
        output = pipeline(PROMPTS, method=method, temperature=0.0, window=None if method == "ar" else 7)
        assert torch.equal(pipeline.adapter.vocabulary_ids(output.tokens), expected), method


@pytest.mark.parametrize("method", ["ar", "jacobi"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_with_the_same_noise_the_tokens_are_those_of_generate(pipeline, method, guidance_scale):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": guidance_scale}
    output = pipeline(PROMPTS, method=method, seed=SEEDS, **settings)
    expected = expected_for(pipeline, seeds=SEEDS, guidance_scale=guidance_scale)
    assert torch.equal(pipeline.adapter.vocabulary_ids(output.tokens), expected)


def test_another_shape_of_lumina(pipelines):
    pipeline = pipelines["lumina_mgpt"]
    size = {"height": 2 * PATCH, "width": 8 * PATCH}
    output = pipeline(PROMPTS, method="ar", seed=SEEDS, top_k=0, **size)
    assert torch.equal(pipeline.adapter.vocabulary_ids(output.tokens), own_generate(pipeline.adapter, (2, 8), seeds=SEEDS))
    assert output.images[0].size == (8 * PATCH, 2 * PATCH)
    assert torch.equal(pipeline(PROMPTS, method="jacobi", seed=SEEDS, top_k=0, **size).tokens, output.tokens)


def test_prompts_are_those_of_the_inference_code(pipeline):
    adapter = pipeline.adapter
    prompts, unconditional = own_prompts(adapter, adapter.grid)
    assert adapter.prompt_ids([*PROMPTS, ""]) == [*prompts, unconditional]


def test_anoles_prompt_is_the_processors(pipelines):
    adapter = pipelines["anole"].adapter
    assert isinstance(adapter.processor, ChameleonProcessor)
    turn = adapter.processor(text=PROMPTS[:1])["input_ids"][0].tolist()  # this tokenizer has no post-processor that would put <s> before it
    assert adapter.prompt_ids(PROMPTS[:1]) == [[adapter.vocabulary["<s>"], *turn, adapter.vocabulary["<racm3:break>"]]]


@pytest.mark.parametrize("initialisation", ["none", "uniform", "left", "above", "left-copy", "above-copy"])
def test_no_structural_token_becomes_a_draft(pipelines, initialisation):
    pipeline = pipelines["lumina_mgpt"]
    expected = pipeline(PROMPTS, method="ar", seed=SEEDS)
    for window in (1, 2, 5, 40):
        output = pipeline(PROMPTS, method="jacobi", seed=SEEDS, initialisation=initialisation, window=window)
        assert torch.equal(output.tokens, expected.tokens)


def test_structural_tokens_stand_where_the_model_wants_them(pipelines):
    tokens = pipelines["lumina_mgpt"](PROMPTS, method="mc-sjd").tokens
    assert tokens.shape == (2, 4 * 5 + 1)
    lines = tokens[:, :20].view(2, 4, 5)
    assert (lines[..., -1] == CODES).all()
    assert (lines[..., :-1] < CODES).all()
    assert tokens[:, -1].tolist() == [CODES + 1] * 2
    adapter = pipelines["lumina_mgpt"].adapter
    assert adapter.vocabulary_ids(tokens[0, [4, 20]]).tolist() == [adapter.vocabulary["<reserved08799>"], adapter.vocabulary["<eoss>"]]
    assert pipelines["anole"](PROMPTS, method="mc-sjd").tokens.shape == (2, 16)


@pytest.mark.parametrize("method", ["mc-sjd", "gs-sjd"])
def test_a_batch_equals_single_runs(pipeline, method):
    together = pipeline(PROMPTS, method=method, seed=SEEDS)
    for row, prompt in enumerate(PROMPTS):
        alone = pipeline(prompt, method=method, seed=SEEDS[row])
        assert torch.equal(alone.tokens[0], together.tokens[row])


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_sjd2_runs_with_clean_structural_slots(pipeline):
    greedy = pipeline(PROMPTS, method="sjd2", window=12, temperature=0.0)
    assert torch.equal(greedy.tokens, pipeline(PROMPTS, method="ar", temperature=0.0).tokens)


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


def test_published_sizes_of_lumina():
    """Those that its own code lists at 512: as many, and some of them."""
    model = chameleon_model(vq_config={**vq_config().to_dict(), "channel_multiplier": [1] * 5, "resolution": 512})
    adapter = LuminaMGPTAdapter(model, chameleon_tokenizer(), target_size=512)
    sizes = adapter.sizes()
    assert len(sizes) == len(set(sizes)) == 49
    assert [(wide, high) for high, wide in sizes[:9]] == [
        (1024, 256), (992, 256), (960, 256), (928, 256), (896, 256), (896, 288), (864, 288), (832, 288), (800, 288),
    ]  # fmt: skip
    assert (512, 512) in sizes
    assert sizes[-1] == (1024, 256)
    assert adapter.grid_of(None, None) == (32, 32)
    assert adapter.grid_of(None, 896) == (18, 56)
    assert adapter.grid_of(512, 480) == (32, 30)
    assert LuminaMGPTAdapter(model, chameleon_tokenizer()).grid == (48, 48)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("anole", {"height": 512}, r"height: the model makes images of 8×8 pixels only, got 512"),
        ("lumina_mgpt", {"height": 6, "width": 8}, r"height and width: expected a size .* nearest to 6×8 is 8×8 \(height×width\)"),
        ("lumina_mgpt", {"width": 300}, r"width: expected a size .* for target_size 8; the nearest to 300 is 4×16"),
    ],
)
def test_sizes_that_the_models_do_not_make_are_refused(pipelines, name, settings, message):
    with pytest.raises(ValueError, match=message):
        pipelines[name]("a cat", **settings)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (" ", "prompt: expected a caption, got an empty string"),
        ("a cat <racm3:break>", "prompt: expected text, got one with the model's own markers"),
        ("a cat IMGIMGAZ", "prompt: expected text, got one with the model's own markers"),
        ("a" * 600, "prompt: expected one that leaves room for an image, at most 49[16] tokens, got 6"),
    ],
)
def test_bad_prompts_are_named(pipeline, prompt, message):
    with pytest.raises(ValueError, match=message):
        pipeline(["a dog", prompt])


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


@pytest.mark.parametrize(
    ("name", "length", "structural"),
    [("anole", 1024, {}), ("lumina_mgpt", 48 * 49 + 1, {8803: 48, 8196: 1})],
)
def test_full_size_on_the_meta_device(name, length, structural, monkeypatch):
    """7B: 32 layers of 32 heads of 128, 512 KiB of keys and values per token in bfloat16."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(code).translate(letters)}Z": 4 + (code * 5 + 1) % 8192 for code in range(8192)}
    names |= {"<s>": 0, "<eoss>": 8196, "<racm3:break>": 8197, **{f"<reserved{8706 + index:05d}>": 8710 + index for index in range(200)}}
    config = ChameleonConfig(vocabulary_map={**names, "<image>": 8711})
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config).to(torch.bfloat16)

    monkeypatch.setattr(SlicedCausalLM, "device", torch.device("cpu"))  # layouts have contents

    def text(prompt, **_):
        return {"input_ids": [ord(letter) + 10_000 for letter in prompt.removesuffix("<reserved08706>")] + [8710] * prompt.endswith(">")}

    adapter = {"anole": AnoleAdapter, "lumina_mgpt": LuminaMGPTAdapter}[name](model, text)
    assert (adapter.image_id_start, adapter.vocab_size) == (4, 8192)
    assert 7.0e9 < sum(parameter.numel() for parameter in model.parameters()) < 7.2e9
    assert config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads) * 2 * 2 == 512 * 1024
    forced = adapter.layout(1).forced[0].cpu()
    assert len(forced) == length
    found = adapter.vocabulary_ids(forced[forced >= 0]).tolist()
    assert {token: found.count(token) for token in found} == structural
    assert adapter.prompt_ids([""]) == [[0, 8197] if name == "anole" else [8197, 8828, 8828]]
    assert adapter.prompt_ids(["a"])[0][0] == 0
    assert adapter.prompt_ids(["a"])[0][-2:] == ([8710, 8197] if name == "anole" else [8828, 8828])
    assert adapter.missing_decoder is not None
    with torch.device("meta"):
        decoder = PixelDecoder(config.vq_config)
        assert decoder(torch.zeros(1, 48, 48, dtype=torch.int64)).shape == (1, 3, 768, 768)
    assert adapter.vqgan is None


def write_tokens(path, adapter, count=8):
    forced = adapter.layout(1).forced[0]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.where(forced < 0, torch.randint(CODES, forced.shape, generator=generator), forced) for _ in range(count)]
    path.write_text("".join(json.dumps({"prompt": "a cat", "tokens": row.tolist()}) + "\n" for row in rows))
    return path


@pytest.fixture(params=VARIANTS)
def trainable(request, folders, tmp_path):
    """A folder that needs no options."""
    shutil.copytree(folders[request.param], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "sjd2": {"adapter": request.param, "target_size": TARGET}}))
    return tmp_path / "model"


@pytest.mark.parametrize("lora", [None, 2])
def test_tuning_from_tokens(trainable, tmp_path, lora):
    before = load_adapter(trainable, device="cpu", dtype=torch.float32)
    data = write_tokens(tmp_path / "tokens.jsonl", before)
    noise = TuningNoise(windows=2, window=6)
    finetune(data, tmp_path / "tuned", FinetuneSettings(noise, steps=2, batch_size=2, lora=lora, learning_rate=1e-2), model=trainable, device="cpu")
    tuned = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu", dtype=torch.float64)
    assert tuned.adapter.denoising == noise.denoising
    assert type(tuned.adapter) is type(before)
    changed = [
        name for name, value in tuned.adapter.model.named_parameters() if not torch.equal(value.float(), before.model.get_parameter(name).float())
    ]
    assert changed
    assert not any("vqmodel" in name for name in changed)
    assert torch.equal(*(tuned("a cat", method=method, temperature=0.0).tokens for method in ("ar", "sjd2")))


def test_tuning_on_own_drafts(trainable, tmp_path):
    drafts = DraftSettings(pool=8, first=4, renewed=2, every=1)
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), drafts, steps=2, batch_size=2, learning_rate=1e-2)
    finetune(["a cat", "a dog", "a red cat", "a red dog"], tmp_path / "tuned", settings, model=trainable, device="cpu")
    output = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")("a cat", method="sjd2")
    assert output.images[0].size == (4 * PATCH, 4 * PATCH)


def test_vqgan_is_float32_beside_a_model_of_half_precision(folders):
    adapter = load_adapter(folders["lumina_mgpt"], device="cpu", dtype=torch.bfloat16, target_size=TARGET)
    assert isinstance(adapter.vqgan, VQGAN)
    assert {tensor.dtype for tensor in adapter.vqgan.state_dict().values()} == {torch.float32}
