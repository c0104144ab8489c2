"""The Janus adapter on a tiny random model in float64: against the model's own ``generate``, partners, pixels, sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache, JanusConfig, JanusForConditionalGeneration, TopKLogitsWarper
from transformers.generation import ClassifierFreeGuidanceLogitsProcessor

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.janus import JanusAdapter
from sjd2.training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from support.frozen_noise import FrozenGumbel
from support.janus import CODES, SIDE, janus_model, janus_processor, save_janus

PROMPTS = ["a cat", "two red dogs in the snow", "x"]
SEEDS = [3, 2**40, 11]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_janus(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64)


def own_generate(adapter, *processors):
    """The image's tokens as the model's documentation makes them; ``processors`` follow each other, the first one sees both branches."""
    model, processor = adapter.model, adapter.processor
    turns = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    text = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    inputs = processor(text=text, generation_mode="image", return_tensors="pt", padding=True)
    return model.generate(
        **inputs,
        generation_mode="image",
        do_sample=False,
        past_key_values=DynamicCache(),  # what Transformers 5.17 would make for itself fails
        **({"logits_processor": [*processors], "guidance_scale": 1.0} if processors else {}),
    )


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_greedy_equals_the_models_own_generate(pipeline):
    expected = own_generate(pipeline.adapter)
    assert len(set(expected.flatten().tolist())) > 4
    for method in [name for name in PRESETS if PRESETS[name].exact != "none"]:
        output = pipeline(PROMPTS, method=method, temperature=0.0, window=None if method == "ar" else 7)
        assert torch.equal(output.tokens, expected), method


@pytest.mark.parametrize("method", ["ar", "jacobi"])
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0], ids=["guided", "plain"])
@pytest.mark.parametrize("top_k", [0, 9])
def test_with_the_same_noise_the_tokens_are_those_of_generate(pipeline, method, guidance_scale, top_k):
    output = pipeline(PROMPTS, method=method, seed=SEEDS, guidance_scale=guidance_scale, top_k=top_k)
    first = ClassifierFreeGuidanceLogitsProcessor(guidance_scale) if guidance_scale > 1 else lambda _, scores: scores[: len(PROMPTS)]
    kept = [TopKLogitsWarper(top_k)] if top_k else []
    expected = own_generate(pipeline.adapter, first, *kept, FrozenGumbel(SEEDS, 0, CODES))
    assert torch.equal(output.tokens, expected)


def test_an_unconditional_partner_is_padding_between_the_first_id_and_the_last(pipeline):
    adapter, text = pipeline.adapter, pipeline.adapter.processor.tokenizer
    bos, pad, image = (text.convert_tokens_to_ids(name) for name in ("<bos>", "<pad>", "<begin_of_image>"))
    ids = adapter.prompt_ids(PROMPTS)
    assert text.decode(ids[0]) == "<bos><|User|>: a cat\n\n<|Assistant|>:<begin_of_image>"
    prompt = adapter.prompt(PROMPTS, ["", "", ""])
    lengths = [len(row) for row in ids]
    assert prompt.lengths.tolist() == lengths * 2
    for row, length in enumerate(lengths):
        expected = adapter.embed_ids(torch.tensor([bos] + [pad] * (length - 2) + [image]))
        assert torch.equal(prompt.embeds[len(PROMPTS) + row, :length], expected)
    empty = adapter.prompt_ids([""])[0]
    assert empty == [bos] + [pad] * (lengths[2] - len("x") - 2) + [image]


def test_a_negative_prompt_is_a_turn_of_its_own(pipeline):
    adapter = pipeline.adapter
    prompt = adapter.prompt(["a cat"], ["blurry"])
    assert torch.equal(prompt.embeds[1, : prompt.lengths[1]], adapter.embed_ids(torch.tensor(adapter.prompt_ids(["blurry"])[0])))
    steered = pipeline("a cat", negative_prompt="blurry", seed=3).tokens
    assert not torch.equal(steered, pipeline("a cat", seed=3).tokens)
    away_from_itself = pipeline("a cat", negative_prompt="a cat", seed=3).tokens
    assert torch.equal(away_from_itself, pipeline("a cat", guidance_scale=1.0, seed=3).tokens)


def test_a_batch_equals_single_runs(pipeline):
    together = pipeline(PROMPTS, method="gs-sjd", window=5, seed=SEEDS)
    for row, prompt in enumerate(PROMPTS):
        alone = pipeline(prompt, method="gs-sjd", window=5, seed=SEEDS[row])
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_images_are_those_of_the_models_own_decoder(pipeline):
    """As the published code makes them of the decoder's pixels: cut off, not rounded."""
    output = pipeline(PROMPTS)
    with torch.no_grad():
        pixels = pipeline.adapter.model.decode_image_tokens(output.tokens).float().numpy()
    assert (np.abs(pixels) < 1).mean() > 0.2
    expected = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    assert [image.size for image in output.images] == [(2 * SIDE, 2 * SIDE)] * 3
    assert np.array_equal(np.stack([np.asarray(image) for image in output.images]), expected)


def test_encode_finds_the_direction_that_is_nearest(pipeline):
    """The published tokenizer's rule: distances between vectors of length one."""
    adapter, vq = pipeline.adapter, pipeline.adapter.model.model.vqmodel
    pictures = [Image.effect_noise((2 * SIDE, 2 * SIDE), 90).convert("RGB"), Image.new("RGB", (2 * SIDE, 2 * SIDE), "teal")]
    tokens = adapter.encode(pictures)
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).astype(np.float64)) for picture in pictures]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).reshape(2, SIDE**2, 1, -1)
    entries = vq.quantize.embedding.weight
    distance = (latents / latents.norm(dim=-1, keepdim=True) - entries / entries.norm(dim=-1, keepdim=True)).norm(dim=-1)
    assert torch.equal(tokens, distance.argmin(-1))
    assert len(set(tokens[0].tolist())) > 3
    assert adapter.encode([pictures[0].resize((40, 24))]).shape == (1, SIDE**2)


def test_the_table_of_embeddings_is_what_tokens_are_fed_as_and_learns(pipeline):
    adapter, inner = pipeline.adapter, pipeline.adapter.model.model
    trained = [inner.generation_embeddings.weight, *inner.generation_aligner.parameters()]
    try:
        for parameter in trained:
            parameter.requires_grad_(True)
        table = adapter.image_embeddings()
        assert torch.allclose(table[torch.tensor([3, 0, 3])], adapter.embed(torch.tensor([3, 0, 3])), rtol=1e-12, atol=1e-12)
        table.square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    finally:
        for parameter in trained:
            parameter.grad = None
            parameter.requires_grad_(False)


@pytest.mark.parametrize("tied", [True, False])
def test_tuning_leaves_alone_exactly_what_no_image_depends_on(tied):
    processor = janus_processor()
    model = janus_model(processor).requires_grad_(True)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    adapter = JanusAdapter(model, processor)
    prompt = adapter.prompt(["a cat"], None).embeds
    embeds = torch.cat([prompt, adapter.embed(torch.tensor([[1, 2]]))], 1)
    count = embeds.shape[1]
    mask = torch.ones(1, 1, count, count, dtype=torch.bool).tril()
    adapter.logits(embeds, mask, torch.arange(count)[None]).square().sum().backward()
    frozen = {parameter for part in adapter.frozen_parts() for parameter in part.parameters()}
    assert frozen == {parameter for parameter in model.parameters() if parameter.grad is None}
    assert (model.lm_head.weight in frozen) == (not tied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 30}, "height: the model makes images of 8×8 pixels only, got 30"),
        ({"width": 16}, "width: the model makes images of 8×8 pixels only, got 16"),
        ({"prompt": " "}, "prompt: expected a caption, got an empty string"),
        ({"prompt": "long " * 60}, "prompt: prompt and image together need .* positions, the model has 256"),
    ],
)
def test_bad_input_is_named(pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a cat", **settings})


def test_what_it_would_get_wrong_is_refused():
    processor = janus_processor()
    model = janus_model(processor)
    model.generation_config.pad_token_id = None
    with pytest.raises(ValueError, match="model: expected a generation_config with one pad_token_id, got None"):
        JanusAdapter(model, processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="processor: expected one with a chat template, got none"):
        JanusAdapter(janus_model(processor), processor)


def test_saving_and_loading_gives_the_same_tokens(pipeline, tmp_path):
    pipeline.adapter.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float64)
    expected = pipeline(PROMPTS, seed=SEEDS)
    output = again(PROMPTS, seed=SEEDS)
    assert torch.equal(output.tokens, expected.tokens)
    assert [image.tobytes() for image in output.images] == [image.tobytes() for image in expected.images]


@pytest.mark.parametrize(
    ("width", "inner", "layers", "heads", "kibibytes", "parameters"),
    [(2048, 5632, 24, 16, 192, 1.9e9), (4096, 11008, 30, 32, 480, 7.0e9)],
    ids=["Janus-Pro-1B", "Janus-Pro-7B"],
)
def test_full_size_on_the_meta_device(width, inner, layers, heads, kibibytes, parameters):
    config = JanusConfig(
        text_config={
            "model_type": "llama", "vocab_size": 102_400, "max_position_embeddings": 16_384, "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        },
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )  # fmt: skip
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config.pad_token_id, model.generation_config.bos_token_id = 100_002, 100_000
    adapter = JanusAdapter(model, janus_processor())
    assert (adapter.vocab_size, adapter.grid, adapter.grid_of(384, 384)) == (16_384, (24, 24), (24, 24))
    layout = adapter.layout(2)
    assert layout.forced.shape == (2, 576)
    assert layout.row_stride == 24
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.06)
    assert 2 * layers * heads * config.text_config.head_dim * 2 == kibibytes * 1024  # keys and values of a token in bfloat16


@pytest.mark.parametrize("lora", [None, 2])
def test_tuning_from_tokens(folder, tmp_path, lora):
    before = load_adapter(folder, device="cpu", dtype=torch.float32)
    rows = torch.randint(CODES, (8, SIDE**2), generator=torch.Generator().manual_seed(0)).tolist()
    data = tmp_path / "tokens.jsonl"
    data.write_text("".join(json.dumps({"prompt": "a cat" * (index % 3), "tokens": row}) + "\n" for index, row in enumerate(rows)))
    noise = TuningNoise(windows=2, window=6)
    settings = FinetuneSettings(noise, steps=2, batch_size=2, lora=lora, learning_rate=1e-2, drop_captions=0.5)
    finetune(data, tmp_path / "tuned", settings, model=folder, device="cpu")
    tuned = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu", dtype=torch.float64)
    assert tuned.adapter.denoising == noise.denoising
    kept = before.model.state_dict()
    changed = {name for name, value in tuned.adapter.model.state_dict().items() if not torch.equal(value.float(), kept[name])}
    assert {"model.generation_head.vision_head.weight", "model.generation_aligner.fc1.weight"} < changed
    assert ("model.generation_embeddings.weight" in changed) == (lora is None)
    assert not any(part in name for name in changed for part in ("vqmodel", "vision_model", "model.aligner"))
    assert torch.equal(*(tuned("a cat", method=method, temperature=0.0).tokens for method in ("ar", "sjd2")))


def test_tuning_on_own_drafts(folder, tmp_path):
    drafts = DraftSettings(pool=8, first=4, renewed=2, every=1)
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), drafts, steps=2, batch_size=2, learning_rate=1e-2)
    finetune(["a cat", "a dog", "a red cat", "a red dog"], tmp_path / "tuned", settings, model=folder, device="cpu")
    output = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")("a cat", method="sjd2")
    assert output.images[0].size == (2 * SIDE, 2 * SIDE)
