"""The Emu3 adapter on a tiny random model in float64: against the model's own ``generate``, layout, pixels, tuning."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import Emu3Config, Emu3ForConditionalGeneration

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.emu3 import Emu3Adapter
from sjd2.training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from support.emu3 import CODES, emu3_model, emu3_processor, save_emu3
from support.frozen_noise import FrozenGumbel

PROMPTS = ["a cat", "two red dogs in the snow"]
ROWS, COLUMNS, PATCH = 4, 5, 8
SIZE = {"height": ROWS * PATCH, "width": COLUMNS * PATCH}
SEEDS = [3, 2**40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_emu3(tmp_path_factory.mktemp("emu3"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64)


def own_generate(adapter, *, seeds=None, guidance_scale=3.0, top_k=0):
    """The image's tokens as the model's documentation makes them, in vocabulary ids."""
    model, processor = adapter.model, adapter.processor
    text, size = processor.tokenizer, {"ratio": f"{COLUMNS}:{ROWS}", "image_area": ROWS * COLUMNS * 64}
    inputs, negative = (
        processor(text=prompts, return_for_image_generation=True, return_tensors="pt", padding=True, **size)
        for prompts in (PROMPTS, [adapter.defaults.negative_prompt] * len(PROMPTS))
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

    noise = FrozenGumbel(seeds, adapter.image_id_start, CODES, others=True) if seeds else None
    output = model.generate(
        inputs.input_ids,
        attention_mask=inputs.attention_mask,
        negative_prompt_ids=negative.input_ids,
        negative_prompt_attention_mask=negative.attention_mask,
        guidance_scale=guidance_scale,
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=ROWS * (COLUMNS + 1) + 3,
        do_sample=False,
        logits_processor=[noise] if noise else [],
    )
    return output[:, inputs.input_ids.shape[1] :]


def vocabulary_ids(adapter, tokens):
    return adapter.vocabulary_ids(tokens)


def test_greedy_equals_the_models_own_generate(pipeline):
    expected = own_generate(pipeline.adapter)
    for method in [name for name in PRESETS if PRESETS[name].exact != "none" and PRESETS[name].denoising is None]:
        output = pipeline(PROMPTS, method=method, temperature=0.0, window=None if method == "ar" else 7, **SIZE)
        assert torch.equal(vocabulary_ids(pipeline.adapter, output.tokens), expected), method


@pytest.mark.parametrize("method", ["ar", "jacobi"])
def test_with_the_same_noise_the_tokens_are_those_of_generate(pipeline, method):
    output = pipeline(PROMPTS, method=method, seed=SEEDS, top_k=0, **SIZE)
    assert torch.equal(vocabulary_ids(pipeline.adapter, output.tokens), own_generate(pipeline.adapter, seeds=SEEDS))


def test_structural_tokens_stand_where_the_model_wants_them(pipeline):
    tokens = pipeline(PROMPTS, method="mc-sjd", **SIZE).tokens
    line, *end = range(CODES, CODES + 4)
    assert tokens.shape == (2, ROWS * (COLUMNS + 1) + 3)
    assert (tokens[:, : ROWS * (COLUMNS + 1)].view(2, ROWS, -1)[..., -1] == line).all()
    assert tokens[:, -3:].tolist() == [end, end]
    assert (tokens[:, : ROWS * (COLUMNS + 1)].view(2, ROWS, -1)[..., :-1] < CODES).all()


@pytest.mark.parametrize("initialisation", ["none", "uniform", "left", "above", "left-copy", "above-copy"])
def test_no_structural_token_becomes_a_draft(pipeline, initialisation):
    """Every initialisation beside ends of lines, in windows from one slot to more than the image."""
    for window in (1, 2, 6, 40):
        output = pipeline(PROMPTS, method="jacobi", seed=SEEDS, initialisation=initialisation, window=window, **SIZE)
        assert torch.equal(output.tokens, pipeline(PROMPTS, method="ar", seed=SEEDS, **SIZE).tokens)


def test_a_batch_equals_single_runs(pipeline):
    together = pipeline(PROMPTS, method="gs-sjd", seed=SEEDS, **SIZE)
    for row, prompt in enumerate(PROMPTS):
        alone = pipeline(prompt, method="gs-sjd", seed=SEEDS[row], **SIZE)
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_images_are_those_of_the_models_own_decoder(pipeline):
    output = pipeline(PROMPTS, **SIZE)
    assert [image.size for image in output.images] == [(SIZE["width"], SIZE["height"])] * 2
    pixels = pipeline.adapter.model.decode_image_tokens(image_tokens=vocabulary_ids(pipeline.adapter, output.tokens), height=ROWS, width=COLUMNS)
    expected = pipeline.adapter.processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"]
    assert [image.tobytes() for image in output.images] == [image.tobytes() for image in expected]


def test_encode_gives_the_tokens_of_the_models_own_encoder(pipeline):
    adapter = pipeline.adapter
    picture = Image.effect_noise((100, 64), 80).convert("RGB")
    grid, adapter.grid = adapter.grid, (ROWS, COLUMNS)
    try:
        tokens = adapter.encode([picture, picture.rotate(180)])
        assert tokens.shape == (2, ROWS * (COLUMNS + 1) + 3)
        assert torch.equal(tokens >= CODES, adapter.layout(2).forced >= 0)
        assert tokens[0].tolist() != tokens[1].tolist()
    finally:
        adapter.grid = grid


def test_the_default_size_is_the_published_one(pipeline):
    assert pipeline.adapter.grid_of(None, None) == (90, 90)
    assert pipeline.adapter.layout(1).forced.shape == (1, 90 * 91 + 3)
    ids = pipeline.adapter.prompt_ids(["x"])[0]
    assert pipeline.adapter.processor.tokenizer.decode(ids) == "<|extra_203|>x<|image start|>90*90<|image token|>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 30}, "height: expected a multiple of 8 pixels, got 30"),
        ({"width": 4}, "width: expected a multiple of 8 pixels, got 4"),
        ({"height": 0}, "height: expected a whole number >= 1, got 0"),
        ({"prompt": " "}, "prompt: expected a caption, got an empty string"),
        ({"prompt": "long " * 100, **SIZE}, "prompt: prompt and image together need .* positions, the model has 512"),
    ],
)
def test_bad_input_is_named(pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a cat", **settings})


def test_a_vocabulary_with_gaps_is_refused():
    processor = emu3_processor()
    model = emu3_model(processor)
    del model.model.vocabulary_mapping.vocab_map["<|visual token 000003|>"]
    model.model.vocabulary_mapping.__dict__.pop("image_tokens", None)
    with pytest.raises(ValueError, match="model: expected image tokens with ids in one range"):
        Emu3Adapter(model, processor)


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_sjd2_runs_with_clean_structural_slots(pipeline):
    greedy = pipeline(PROMPTS, method="sjd2", window=12, temperature=0.0, **SIZE)
    assert torch.equal(greedy.tokens, pipeline(PROMPTS, method="ar", temperature=0.0, **SIZE).tokens)


def test_saving_and_loading_gives_the_same_tokens(pipeline, tmp_path):
    pipeline.adapter.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float64)
    assert torch.equal(again(PROMPTS, seed=SEEDS, **SIZE).tokens, pipeline(PROMPTS, seed=SEEDS, **SIZE).tokens)


def test_full_size_on_the_meta_device():
    """Emu3-Gen 8B: 8,193 tokens, 128 KiB of keys and values per token in bfloat16."""
    names = {f"<|visual token {code:06d}|>": 151_854 + code for code in range(32_768)}
    config = Emu3Config(vocabulary_map={**names, "<|extra_200|>": 151_846, "<image>": 151_642})
    with torch.device("meta"):
        model = Emu3ForConditionalGeneration(config).to(torch.bfloat16)
    adapter = Emu3Adapter(model, emu3_processor())
    assert (adapter.image_id_start, adapter.vocab_size) == (151_854, 32_768)
    assert 8.4e9 < sum(parameter.numel() for parameter in model.parameters()) < 8.8e9
    text = config.text_config
    assert text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 2 * 2 == 128 * 1024


def small(folder, tmp_path):
    """The model with an image of 3 × 4 tokens as its usual one."""
    copied = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "sjd2": {"grid": [3, 4]}}))
    return copied


def write_tokens(path, adapter, count=8):
    forced = adapter.layout(1).forced[0]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.where(forced < 0, torch.randint(CODES, forced.shape, generator=generator), forced) for _ in range(count)]
    path.write_text("".join(json.dumps({"prompt": "a cat", "tokens": row.tolist()}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("lora", [None, 2])
def test_tuning_from_tokens(folder, tmp_path, lora):
    model = small(folder, tmp_path)
    before = load_adapter(model, device="cpu", dtype=torch.float32)
    data = write_tokens(tmp_path / "tokens.jsonl", before)
    noise = TuningNoise(windows=2, window=6)
    finetune(data, tmp_path / "tuned", FinetuneSettings(noise, steps=2, batch_size=2, lora=lora, learning_rate=1e-2), model=model, device="cpu")
    tuned = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu", dtype=torch.float64)
    assert tuned.adapter.denoising == noise.denoising
    assert tuned.adapter.grid == (3, 4)
    changed = {
        name for name, value in tuned.adapter.model.named_parameters() if not torch.equal(value.float(), before.model.get_parameter(name).float())
    }
    assert changed
    assert not any("vqmodel" in name for name in changed)
    assert torch.equal(*(tuned("a cat", method=method, temperature=0.0).tokens for method in ("ar", "sjd2")))


def test_tuning_on_own_drafts(folder, tmp_path):
    model = small(folder, tmp_path)
    drafts = DraftSettings(pool=8, first=4, renewed=2, every=1)
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), drafts, steps=2, batch_size=2, learning_rate=1e-2)
    finetune(["a cat", "a dog", "a red cat", "a red dog"], tmp_path / "tuned", settings, model=model, device="cpu")
    output = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")("a cat", method="sjd2")
    assert output.images[0].size == (4 * PATCH, 3 * PATCH)


def test_tuning_at_another_size(folder, tmp_path):
    data = [{"prompt": "a cat", "tokens": [1] * 4 + [CODES, CODES + 1, CODES + 2, CODES + 3]}] * 2
    settings = FinetuneSettings(TuningNoise(windows=1, window=2), steps=1, batch_size=2, held_out=0, height=PATCH, width=4 * PATCH)
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    finetune(path, tmp_path / "tuned", settings, model=folder, device="cpu")
    assert load_adapter(tmp_path / "tuned", device="cpu").grid == (1, 4)
