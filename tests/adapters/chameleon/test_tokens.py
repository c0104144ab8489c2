"""Anole and Lumina-mGPT against the model's own ``generate``: tokens, prompts, layout, sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor, LogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from sjd2 import PRESETS
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.adapters.chameleon import AnoleAdapter, LuminaMGPTAdapter
from sjd2.adapters.vqgan import PixelDecoder
from support.chameleon import CODES, PATCH, chameleon_model, chameleon_tokenizer, vq_config
from support.chameleon_family import PROMPTS, SEEDS
from support.frozen_noise import FrozenGumbel


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
