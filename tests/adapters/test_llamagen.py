"""LlamaGen: a checkpoint in the published format, converted, against an independent float64 account of the published forward."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import JanusVQVAE, LlamaConfig, LlamaForCausalLM, T5Config, T5EncoderModel, TopKLogitsWarper
from transformers.models.janus import JanusVQVAEConfig

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.captions import clean_caption
from sjd2.adapters.llamagen import CaptionProjection, GridRotary, LlamaGenAdapter
from sjd2.adapters.llamagen_convert import convert_llamagen
from sjd2.cli import main as sjd2
from sjd2.training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from support.frozen_noise import FrozenGumbel
from support.llamagen import CODES, HEADS, PREFIX, SIDE, VQ, Published, gpt_logits, gpt_state, save_checkpoints, text_tokenizer, vq_state

PROMPTS = ["a cat", "two red dogs in the snow", "x"]
SEEDS = [3, 2**40, 11]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_checkpoints(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory):
    return convert_llamagen(**checkpoints, output=tmp_path_factory.mktemp("converted") / "model", image_size=2 * SIDE, heads=HEADS)


@pytest.fixture(scope="module")
def pipeline(folder):
    return TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def published(checkpoints):
    return Published(checkpoints["text_encoder"])


@torch.inference_mode()
def test_a_converted_model_has_the_logits_of_the_published_forward(pipeline, published):
    """Of captions and of their unconditional partners, for every image token; the stock forward is given no padding."""
    adapter = pipeline.adapter
    tokens = torch.randint(CODES, (len(PROMPTS), SIDE**2), generator=torch.Generator().manual_seed(0))
    features, valid = published.features(PROMPTS)
    assert valid == [6, PREFIX, 2]
    prompt, places = adapter.prompt(PROMPTS, [""] * len(PROMPTS)), adapter.layout(1).places
    for row in range(2 * len(PROMPTS)):
        index = row % len(PROMPTS)
        given = features[index] if row < len(PROMPTS) else published.state["cls_embedding.uncond_embedding"]
        expected = gpt_logits(published.state, given, valid[index], tokens[index, :-1].tolist())
        length = int(prompt.lengths[row])
        assert length == valid[index]
        embeds = torch.cat([prompt.embeds[row : row + 1, :length], adapter.embed(tokens[index : index + 1, :-1])], 1)
        count = embeds.shape[1]
        positions = torch.cat([torch.arange(length).expand(3, -1), length + places[:, :-1]], 1)[:, None]
        mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        found = adapter.logits(embeds, mask, positions, outputs=slice(length - 1, None))[0]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 1


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise", "ignore:prompt. the model reads")
def test_greedy_equals_the_published_sampling(pipeline, published):
    expected = published.generate(PROMPTS, 7.5, lambda scores: scores.argmax(-1))
    assert len(set(expected.flatten().tolist())) > 4
    for method in [name for name in PRESETS if PRESETS[name].exact != "none"]:
        output = pipeline(PROMPTS, method=method, temperature=0.0, window=None if method == "ar" else 7)
        assert torch.equal(output.tokens, expected), method


@pytest.mark.filterwarnings("ignore:prompt. the model reads")
def test_with_the_same_noise_the_tokens_are_those_of_published_sampling(pipeline, published):
    warper, noise = TopKLogitsWarper(9), FrozenGumbel(SEEDS, 0, CODES)
    expected = published.generate(PROMPTS, 2.0, lambda scores: noise(None, warper(None, scores)).argmax(-1))
    for method in ("ar", "jacobi"):
        output = pipeline(PROMPTS, method=method, seed=SEEDS, guidance_scale=2.0, top_k=9)
        assert torch.equal(output.tokens, expected), method


def test_a_prompt_is_its_caption_and_its_partner_the_last_unconditional_inputs(pipeline):
    adapter = pipeline.adapter
    words = int(adapter.text_encoder.config.vocab_size)
    assert [len(row) for row in adapter.prompt_ids(["ab", ""])] == [3, PREFIX]
    assert adapter.prompt_ids(["A (Cat)"]) == adapter.prompt_ids(["a cat"])
    assert adapter.prompt_ids([""])[0] == [*range(words, words + PREFIX)]
    prompt = adapter.prompt(["ab", "c"], ["", "def"])
    assert prompt.lengths.tolist() == [3, 2, 3, 4]
    unconditional = adapter.caption(adapter.caption.unconditional)
    assert torch.allclose(prompt.embeds[2, :3], unconditional[-3:], rtol=1e-12, atol=1e-12)
    assert torch.allclose(prompt.embeds[3, :4], adapter.embed_ids(torch.tensor(adapter.prompt_ids(["def"])))[0], rtol=1e-9, atol=1e-9)


def test_padding_on_either_side_changes_no_embedding(pipeline):
    """As decoding and tuning pad prompts."""
    adapter = pipeline.adapter
    ids = torch.tensor(adapter.prompt_ids(["a cat"]))
    alone = adapter.embed_ids(ids)
    zeros = torch.zeros(1, 3, dtype=torch.int64)
    assert torch.allclose(adapter.embed_ids(torch.cat([zeros, ids], 1))[:, 3:], alone, rtol=1e-9, atol=1e-9)
    assert torch.allclose(adapter.embed_ids(torch.cat([ids, zeros], 1))[:, :-3], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:prompt. the model reads")
def test_a_batch_equals_single_runs(pipeline):
    together = pipeline(PROMPTS, method="gs-sjd", window=5, seed=SEEDS)
    for row, prompt in enumerate(PROMPTS):
        alone = pipeline(prompt, method="gs-sjd", window=5, seed=SEEDS[row])
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_images_are_those_of_the_published_decoder(pipeline):
    output = pipeline(["a cat", "x"])
    pixels = VQ(vq_state()).decode(output.tokens)
    assert pixels.clamp(-1, 1).std() > 0.05
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack([np.asarray(image) for image in output.images]), expected)


def test_encode_gives_the_tokens_of_the_published_encoder(pipeline):
    pictures = [Image.effect_noise((2 * SIDE, 2 * SIDE), 90).convert("RGB"), Image.linear_gradient("L").resize((2 * SIDE, 2 * SIDE)).convert("RGB")]
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).astype(np.float64)) for picture in pictures]).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = pipeline.adapter.encode(pictures)
    assert torch.equal(tokens, VQ(vq_state()).encode(pixels))
    assert len(set(tokens.flatten().tolist())) > 3


def test_the_rotary_embedding_is_nothing_in_a_prompt():
    rotary = GridRotary(8)
    cosine, sine = rotary(torch.zeros(1, dtype=torch.float64), torch.tensor([[[0, 1, 2, 2]], [[0, 1, 3, 4]], [[0, 1, 3, 6]]]))
    assert cosine[0, :2].abs().sum() == sine[0, :2].abs().sum() == 0
    assert torch.equal(cosine[0, 2], torch.ones(8, dtype=torch.float64))
    angles = torch.tensor([1, 0.01, 3, 0.03], dtype=torch.float64).repeat(2)
    assert torch.allclose(cosine[0, 3], angles.cos())
    assert torch.allclose(sine[0, 3], angles.sin())
    assert all(part.abs().sum() == 0 for part in rotary(torch.zeros(1), torch.arange(4)[None]))
    with pytest.raises(ValueError, match="head_dim: expected a multiple of 4, got 6"):
        GridRotary(6)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A “Red” Fox (in the snow)…  see https://foxes.org/17.jpg", 'a "red" fox in the snow … see'),
        ("Tom&amp;Jerry <b>1920x1080</b> wallpaper.png #123", "tom jerry"),
        ("deep_blue_sea_at_night, 'by @someone'", "deep blue sea at night, 'by"),
        ("a cat,a dog / 猫", "a cat, a dog"),
    ],
)
def test_captions_are_cleaned(caption, cleaned):
    assert clean_caption(caption) == cleaned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 30}, "height: the model makes images of 8×8 pixels only, got 30"),
        ({"prompt": "#1"}, "prompt: expected a caption in words, got '#1'"),
        ({"negative_prompt": "(**)"}, r"prompt: expected a caption in words, got '\(\*\*\)'"),
    ],
)
def test_bad_input_is_named(pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a cat", **settings})


def test_a_caption_that_is_cut_off_is_warned_of(pipeline):
    with pytest.warns(UserWarning, match=f"prompt: the model reads {PREFIX} tokens of a caption and not the 25 of 'two red"):
        output = pipeline(PROMPTS[1])
    assert torch.equal(output.tokens, pipeline("two red dog").tokens)


def _changed(state, **tensors):
    return {name: value for name, value in {**state, **tensors}.items() if value is not None}


@pytest.mark.parametrize(
    ("argument", "state", "settings", "message"),
    [
        ("gpt", {"cls_embedding.uncond_embedding": None}, {}, "gpt: expected a tensor cls_embedding.uncond_embedding, got a checkpoint without"),
        ("gpt", {"layers.1.attention.wo.weight": None}, {}, "gpt: expected a tensor layers.1.attention.wo.weight, got a checkpoint without"),
        ("gpt", {"layers.0.attention.wqkv.weight": None}, {}, "gpt: expected a tensor layers.0.attention.wqkv.weight, got a checkpoint without"),
        ("gpt", {"layers.1.attention.wqkv.weight": torch.zeros(95, 32)}, {}, r"gpt: expected 96 rows in layers.1.attention.wqkv.weight, got 95"),
        ("gpt", {"norm.weight": torch.zeros(3)}, {}, r"gpt: expected the shape \(32,\) for model.norm.weight \(by its new name\), got \(3,\)"),
        ("gpt", {"cls_embedding.embedding_table.weight": torch.zeros(9, 32)}, {}, "gpt: expected a model of captions, got one of classes"),
        ("gpt", {"cls_embedding.cap_proj.fc2.weight": torch.zeros(31, 32)}, {}, r"gpt: expected the shape \(32, 32\) for the caption's fc2.weight"),
        ("gpt", {}, {"heads": None}, "heads: expected the number of attention heads of a model of width 32 .*, got None"),
        ("gpt", {}, {"heads": -4}, "heads: expected the number of attention heads of a model of width 32 .*, got -4"),
        ("gpt", {}, {"heads": 0}, "heads: expected the number of attention heads of a model of width 32 .*, got 0"),
        ("gpt", {}, {"heads": 16}, "heads: expected the number of attention heads of a model of width 32 .*, got 16"),
        ("vq", {"decoder.mid.1.q.bias": None}, {}, "vq: 1 tensors are missing, among them decoder.mid.attn_1.q.bias"),
        ("vq", {"quantize.embedding.weight": torch.zeros(25, 4)}, {}, "vq: expected a codebook of the model's 24 ids, got 25"),
        ("vq", {"encoder.conv_in.weight": None}, {}, "vq: expected a tensor encoder.conv_in.weight, got a checkpoint without"),
        ("vq", {}, {"image_size": 7}, "image_size: expected a multiple of the tokenizer's 2 pixels per token, got 7"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoints, tmp_path, argument, state, settings, message):
    path = tmp_path / "other.pt"
    torch.save(_changed(gpt_state() if argument == "gpt" else vq_state(), **state), path)
    arguments = {**checkpoints, argument: path, "output": tmp_path / "model", "image_size": 2 * SIDE, "heads": HEADS, **settings}
    with pytest.raises(ValueError, match=message):
        convert_llamagen(**arguments)
    assert [one.name for one in tmp_path.iterdir()] == ["other.pt"]


def test_tensors_of_no_use_are_warned_of_and_wrappers_taken_off(checkpoints, tmp_path):
    wrapped = {f"_orig_mod.{name}": value for name, value in {**gpt_state(), "extra": torch.zeros(1), "freqs_cis": torch.zeros(1)}.items()}
    torch.save({"module": wrapped}, tmp_path / "gpt.pt")
    with pytest.warns(UserWarning, match="gpt: 1 tensors are of no use and left out, among them extra"):
        convert_llamagen(**{**checkpoints, "gpt": tmp_path / "gpt.pt"}, output=tmp_path / "model", image_size=2 * SIDE, heads=HEADS)
    assert load_adapter(tmp_path / "model", device="cpu").grid == (SIDE, SIDE)


def test_the_command_converts(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["convert", "llamagen", "--image-size", "8", "--heads", str(HEADS), "-o", "made", "--vq", str(checkpoints["vq"])]
    arguments += ["--text-encoder", str(checkpoints["text_encoder"])]
    assert sjd2([*arguments, "--gpt", str(checkpoints["gpt"])]) == 0
    assert capsys.readouterr().out == "made: done\n"
    assert TextToImagePipeline.from_pretrained("made", device="cpu")("a cat").images[0].size == (8, 8)
    assert sjd2([*arguments, "--gpt", str(checkpoints["gpt"])]) == 1
    assert capsys.readouterr().err == "error: output: expected a folder that does not exist yet, made does\n"
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save([1], tmp_path / "list.pt")
    for name, message in (
        ("nothing.pt", "expected a file, nothing.pt is none"),
        ("text.pt", "text.pt cannot be read as a PyTorch checkpoint"),
        ("list.pt", "expected tensors by name, list.pt holds a list"),
    ):
        assert sjd2([*arguments[:-4], "--vq", name, *arguments[-2:], "-o", "other", "--gpt", str(checkpoints["gpt"])]) == 1
        assert f"error: vq: {message}" in capsys.readouterr().err


def test_a_folder_without_a_part_says_which(folder, tmp_path):
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"caption.safetensors is missing; `sjd2 convert llamagen` writes the whole folder"):
        load_adapter(tmp_path, device="cpu")


def test_every_part_keeps_the_dtype_it_was_stored_in(folder, tmp_path):
    load_adapter(folder, device="cpu", dtype=torch.float32).save_pretrained(tmp_path)
    for part in (".", "text_encoder", "vq"):
        assert json.loads((tmp_path / part / "config.json").read_text())["dtype"] == "float64"
    assert CaptionProjection.load(tmp_path / "caption.safetensors").fc1.weight.dtype == torch.float64


def test_saving_and_loading_gives_the_same_tokens(pipeline, tmp_path):
    pipeline.adapter.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float64)
    expected, output = (one(["a cat", "x"], seed=SEEDS[:2]) for one in (pipeline, again))
    assert torch.equal(output.tokens, expected.tokens)
    assert [image.tobytes() for image in output.images] == [image.tobytes() for image in expected.images]


@pytest.mark.parametrize("lora", [None, 2])
def test_tuning_from_tokens(folder, tmp_path, lora):
    before = load_adapter(folder, device="cpu", dtype=torch.float32)
    rows = torch.randint(CODES, (8, SIDE**2), generator=torch.Generator().manual_seed(0)).tolist()
    data = tmp_path / "tokens.jsonl"
    data.write_text("".join(json.dumps({"prompt": "a cat", "tokens": row}) + "\n" for row in rows))
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), steps=2, batch_size=2, lora=lora, learning_rate=1e-2, drop_captions=0.5)
    finetune(data, tmp_path / "tuned", settings, model=folder, device="cpu")
    tuned = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu", dtype=torch.float64)
    kept = before.model.state_dict()
    assert any(not torch.equal(value.float(), kept[name]) for name, value in tuned.adapter.model.state_dict().items())
    assert torch.equal(tuned.adapter.caption.unconditional.float(), before.caption.unconditional)
    assert torch.equal(*(tuned("a cat", method=method, temperature=0.0).tokens for method in ("ar", "sjd2")))


def test_tuning_on_own_drafts(folder, tmp_path):
    drafts = DraftSettings(pool=8, first=4, renewed=2, every=1)
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), drafts, steps=2, batch_size=2, learning_rate=1e-2)
    finetune(["a cat", "a dog", "a red cat", "a red dog"], tmp_path / "tuned", settings, model=folder, device="cpu")
    assert TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")("a cat", method="sjd2").images[0].size == (8, 8)


@pytest.mark.parametrize("side", [16, 32], ids=["stage 1", "stage 2"])
def test_full_size_on_the_meta_device(side):
    """LlamaGen-XL: 775 million parameters, 180 KiB of keys and values per token in bfloat16."""
    with torch.device("meta"):
        config = LlamaConfig(
            vocab_size=16_384, hidden_size=1280, intermediate_size=3584, num_hidden_layers=36, num_attention_heads=20, num_key_value_heads=20,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        encoder = T5EncoderModel(T5Config(d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu"))
        caption, vq = CaptionProjection(2048, 1280, 120), JanusVQVAE(JanusVQVAEConfig(num_patches=side))
    adapter = LlamaGenAdapter(model, text_tokenizer(), encoder, caption, vq)
    assert (adapter.grid, adapter.grid_of(16 * side, None)) == ((side, side), (side, side))
    layout = adapter.layout(1)
    assert layout.forced.shape == (1, side**2)
    assert layout.places.shape == (3, side**2)
    size = sum(parameter.numel() for module in (model, caption) for parameter in module.parameters())
    assert size == pytest.approx(775e6, rel=0.01)
    assert sum(parameter.numel() for parameter in vq.parameters()) == pytest.approx(72e6, rel=0.02)
    assert 2 * 36 * 20 * config.head_dim * 2 == 180 * 1024
