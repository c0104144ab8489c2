"""GLM-Image: the tokens of the model's own ``generate``, 3-D positions, drafts and sizes, encoding, tuning."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, LogitsProcessor, TrainingArguments

from sjd2 import PRESETS, TextToImagePipeline, load_adapter
from sjd2.adapters.glm_image import GlmImageAdapter
from sjd2.decoding import DecodeResult, decode, resolve_preset
from sjd2.denoising import NoiseLevels
from sjd2.training import (
    DraftCollator,
    DraftDistillation,
    DraftSettings,
    NextCleanTokenModel,
    NoiseCollator,
    NoisePlan,
    TuningNoise,
    build_trainer,
    record,
    save_tuned,
)
from sjd2.training.columns import lay_out
from sjd2_kernels import LogitsProcessing
from support.frozen_noise import FrozenGumbel
from support.glm_image import CODES, END, PATCH, write_model

PROMPTS = ["a fox", "“Hello” in red letters on a white wall"]
GRID = (2, 2)
DRAFT = 16 * 16
FREE = DRAFT + 2 * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("glm_image") / "model")


@pytest.fixture(scope="module")
def adapter(folder) -> GlmImageAdapter:
    return load_adapter(folder, device="cpu", dtype=torch.float64)


def test_the_fastest_window_is_found_on_three_axes_of_positions(adapter):
    """The forwards that are timed get positions as those of a run do."""
    fed = []
    forward = adapter.model.base_model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter.model.base_model, "forward", lambda **inputs: fed.append(inputs["position_ids"].shape) or forward(**inputs))
        report = TextToImagePipeline(adapter)(PROMPTS[0], height=64, width=64, window="auto", output_type="tokens").reports[0]
    assert len(report.tokens) == FREE + 1
    assert {len(shape) for shape in fed[:8]} == {3}


class _Images(LogitsProcessor):
    """What a trained model does by itself: codes until the images are complete. With a scale, pairs of rows are guided as one."""

    def __init__(self, guidance_scale: float | None = None):
        self.scale = guidance_scale

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, CODES:] = -torch.inf
        if self.scale is None:
            return scores
        conditional, unconditional = scores.chunk(2)
        return (unconditional + self.scale * (conditional - unconditional)).nan_to_num(nan=-torch.inf).repeat(2, 1)


class _Repeated(LogitsProcessor):
    """Frozen noise for guided pairs of rows, whose unconditional one takes the token of the other."""

    def __init__(self, seeds: list[int]):
        self.noise = FrozenGumbel(seeds, 0, CODES)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.noise(input_ids, scores[: len(scores) // 2]).repeat(2, 1)


def own_generate(adapter: GlmImageAdapter, prompts: list[str], processors: list, grid: tuple[int, int] = GRID, **options) -> torch.Tensor:
    """Free tokens as the model's own code makes them, from left-padded prompts."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    size = {"target_h": 32 * grid[0], "target_w": 32 * grid[1]}
    inputs = adapter.processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True, **size}
    )
    count = int((inputs["image_grid_thw"][0].prod() + inputs["image_grid_thw"][1].prod()).item())
    tokens = adapter.model.generate(**inputs, max_new_tokens=count, logits_processor=processors, do_sample=False, **options)
    return tokens[:, inputs["input_ids"].shape[1] :]


def run(adapter: GlmImageAdapter, method: str, prompts: list[str] = PROMPTS, seeds=(3, 4), grid=GRID, window=None, **settings) -> DecodeResult:
    guided = settings.get("guidance_scale", 1.0) != 1
    return decode(
        adapter,
        adapter.prompt(prompts, [""] * len(prompts) if guided else None, grid),
        adapter.layout(len(prompts), grid),
        LogitsProcessing.create(len(prompts), **settings),
        resolve_preset(method, window=window),
        torch.tensor(seeds[: len(prompts)]),
    )


@pytest.mark.parametrize("grid", [GRID, (3, 1)])
def test_greedy_tokens_are_those_of_the_models_own_generate(adapter, grid):
    tokens = run(adapter, "ar", grid=grid, temperature=0.0).tokens
    assert tokens[:, :-1].tolist() == own_generate(adapter, PROMPTS, [_Images()], grid).tolist()
    assert tokens[:, -1].tolist() == [CODES] * 2  # the slice id of the end marker


def test_sampled_tokens_are_those_of_the_models_own_generate_with_the_same_noise(adapter):
    mine = run(adapter, "ar", temperature=1.0).tokens
    assert mine[:, :-1].tolist() == own_generate(adapter, PROMPTS, [FrozenGumbel([3, 4], 0, CODES)]).tolist()


def test_guided_tokens_are_those_of_guided_generate(adapter):
    processors = [_Images(2.5), _Repeated([3, 4])]
    theirs = own_generate(adapter, [*PROMPTS, "", ""], processors)[:2]
    mine = run(adapter, "ar", guidance_scale=2.5).tokens
    assert mine[:, :-1].tolist() == theirs.tolist()
    assert mine.tolist() != run(adapter, "ar").tokens.tolist()


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}])
def test_jacobi_gives_the_tokens_of_ar_in_fewer_forwards(adapter, settings):
    expected = run(adapter, "ar", temperature=0.9, top_p=0.75, **settings)
    result = run(adapter, "jacobi", temperature=0.9, top_p=0.75, **settings)
    assert result.tokens.tolist() == expected.tokens.tolist()
    assert max(row.forwards for row in result.rows) < FREE + 1


@pytest.mark.parametrize("method", [name for name, preset in PRESETS.items() if preset.exact != "none" and name != "ar"])
def test_greedy_tokens_are_the_same_with_every_lossless_method(adapter, method):
    expected = run(adapter, "ar", temperature=0.0).tokens
    assert run(adapter, method, window=24, temperature=0.0).tokens.tolist() == expected.tolist()


def test_a_batch_of_mixed_prompts_equals_single_runs(adapter):
    both = run(adapter, "mc-sjd", window=16, temperature=0.9, top_p=0.75).tokens
    for row, (prompt, seed) in enumerate(zip(PROMPTS, (3, 4), strict=True)):
        assert run(adapter, "mc-sjd", [prompt], (seed,), window=16, temperature=0.9, top_p=0.75).tokens[0].tolist() == both[row].tolist()


@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (5, 1), (36, 24), (32, 32), (64, 20)])
def test_positions_and_grids_are_the_models_own(adapter, grid):
    encoded = adapter.processor(text="a fox", target_h=32 * grid[0], target_w=32 * grid[1], return_tensors="pt")
    adapter.model.model.get_rope_index(encoded["input_ids"], encoded["image_grid_thw"], encoded["images_per_sample"], encoded["attention_mask"])
    theirs = adapter.model.model._cached_decode_position_ids[0]
    layout = adapter.layout(1, grid)
    assert (layout.places + encoded["input_ids"].shape[1]).tolist() == theirs.tolist()
    draft = encoded["image_grid_thw"][1, 1:].prod().item()
    assert layout.forced.shape == (1, draft + math.prod(grid) + 1)
    assert layout.forced[0].nonzero().flatten().tolist() == list(range(layout.forced.shape[1]))  # −1, and one id that is not 0
    assert (layout.forced[0] >= 0).nonzero().flatten().tolist() == [draft + math.prod(grid)]
    assert layout.row_stride == grid[1]


def test_the_end_marker_is_the_models(adapter):
    assert adapter.vocabulary_ids(torch.tensor([[0, CODES - 1, CODES]])).tolist() == [[0, CODES - 1, END]]
    embeddings = adapter.model.get_input_embeddings().weight
    assert torch.equal(adapter.embed(torch.tensor([[CODES]]))[0, 0], embeddings[END])


def test_prompts_hold_the_sizes_of_the_image_and_its_draft(adapter):
    ids = adapter.prompt_ids(["a fox", "", "a dog"], (4, 1))
    texts = adapter.processor.tokenizer.batch_decode(ids)
    assert texts[0] == "<|user|>a fox<sop>4 1<eop><sop>32 8<eop><|dit_token_24|>"
    assert texts[1] == "<|user|><sop>4 1<eop><sop>32 8<eop><|dit_token_24|>"
    assert len(ids[0]) == len(ids[2])


def test_prior_tokens_are_the_images_each_four_times(adapter):
    tokens = torch.arange(FREE + 1).repeat(2, 1)
    first = [256, 256, 257, 257, 256, 256, 257, 257, 258, 258, 259, 259, 258, 258, 259, 259]
    assert adapter.prior_token_ids(tokens).tolist() == [first, first]


def test_pixels_are_left_to_diffusers(adapter):
    how = r"GlmImagePipeline.*prior_token_ids=adapter.prior_token_ids\(tokens, grid\)"
    with pytest.raises(NotImplementedError, match=how):
        adapter.images(torch.zeros(1, FREE + 1, dtype=torch.int64), (2, 3))
    with pytest.warns(UserWarning, match=how):
        output = TextToImagePipeline(adapter)("a fox", method="mc-sjd", height=96, width=32)
    assert output.images == []
    assert adapter.prior_token_ids(output.tokens, (3, 1)).shape == (1, 12)


def test_pictures_become_the_codes_that_the_model_reads_in_them(adapter):
    generator = torch.Generator().manual_seed(0)
    pictures = [Image.fromarray(torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8).numpy()) for _ in range(2)]
    tokens = adapter.encode(pictures)
    assert tokens.shape == (2, FREE + 1)
    assert tokens[:, -1].tolist() == [CODES] * 2
    assert len(tokens[0, :DRAFT].unique()) > 4
    for row, picture in enumerate(pictures):
        patches = picture.resize((16 * PATCH, 16 * PATCH), Image.Resampling.LANCZOS)
        inputs = adapter.processor.image_processor(patches, do_resize=False, return_tensors="pt")
        grid = inputs["image_grid_thw"]
        features = adapter.model.get_image_features(inputs["pixel_values"].double(), grid).pooler_output
        features = features if features[0].ndim == 3 else torch.cat(features)  # one picture per entry, or older: packed
        assert adapter.model.get_image_tokens(features, grid).flatten().tolist() == tokens[row, :DRAFT].tolist()


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(100, None, "height: expected a multiple of 32 pixels, got 100"), (None, 33, "width: expected a multiple of 32"), (32 * 300, 32, "draft")],
)
def test_sizes_that_the_model_does_not_make_are_errors(adapter, height, width, message):
    with pytest.raises(ValueError, match=message):
        adapter.grid_of(height, width)


def test_the_usual_size_may_be_given(folder):
    assert load_adapter(folder, adapter={"grid": [3, 1]}, device="cpu").grid_of(None, None) == (3, 1)


def test_any_multiple_of_32_is_a_size(adapter):
    assert adapter.grid_of(None, None) == GRID
    assert adapter.grid_of(1152, 768) == (36, 24)
    assert adapter.grid_of(None, 96) == (2, 3)


@pytest.mark.parametrize("prompt", ["", "  ", "a fox<sop>36 24<eop>"])
def test_prompts_without_a_caption_or_with_a_size_are_errors(adapter, prompt):
    with pytest.raises(ValueError, match="prompt: expected a caption"):
        adapter.check_prompts(["a fox", prompt])


def test_the_processor_may_lie_beside_the_model(folder, tmp_path):
    """As in repositories of diffusers."""
    own = shutil.ignore_patterns("tokenizer*", "processor*", "*.jinja")
    shutil.copytree(folder, tmp_path / "vision_language_encoder", ignore=own)
    load_adapter(folder, device="cpu").processor.save_pretrained(tmp_path / "processor")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "GlmImagePipeline"}))
    for place in (tmp_path / "vision_language_encoder", tmp_path):
        assert TextToImagePipeline.from_pretrained(place, device="cpu").adapter.prompt_ids(["a fox"])[0][-1] == CODES


def test_tuning_from_tokens(folder, tmp_path):
    adapter = load_adapter(folder, device="cpu", dtype=torch.float32)
    adapter.model.requires_grad_(True)
    for part in adapter.frozen_parts():
        part.requires_grad_(False)
    noise = TuningNoise(NoiseLevels.karras(2), windows=2, window=6, segment=(1, 2))
    rows = adapter.encode([Image.effect_noise((40, 40), 80 + 20 * i) for i in range(4)])
    data = [{"prompt": PROMPTS[i % 2], "tokens": row} for i, row in enumerate(rows.tolist())]
    arguments = TrainingArguments(
        str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2,
        logging_steps=1,
    )  # fmt: skip
    trainer = build_trainer(NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise), data, None, arguments)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    save_tuned(adapter, noise, tmp_path / "tuned")
    tuned = load_adapter(tmp_path / "tuned", device="cpu", dtype=torch.float32)
    assert (tuned.denoising, tuned.grid) == (noise.denoising, GRID)
    assert run(tuned, "sjd2", window=16).tokens.tolist() == run(adapter, "sjd2", window=16).tokens.tolist()


def test_clean_inputs_of_tuning_get_the_models_own_logits(adapter):
    noise = TuningNoise(NoiseLevels.karras(2), windows=2, window=6, segment=(1, 2))
    tokens = run(adapter, "ar").tokens
    examples = [{"prompt": prompt, "tokens": row, "seed": 1} for prompt, row in zip(PROMPTS, tokens.tolist(), strict=True)]
    made = NoiseCollator(adapter, noise)(examples)
    columns = lay_out(made["prompt_mask"], NoisePlan(made["sequence_levels"], made["window_start"], made["window_levels"]), 2)
    with torch.no_grad():
        logits = NextCleanTokenModel(adapter, noise).logits(made["prompt_ids"], tokens, columns)
    ids = adapter.prompt_ids(PROMPTS)
    for row, prompt in enumerate(ids):
        grids = torch.tensor([[1, 2, 2], [1, 16, 16]])
        before, _ = adapter.model.model.get_rope_index(torch.tensor([prompt]), grids, torch.tensor([2]))
        positions = torch.cat([before, adapter.model.model._cached_decode_position_ids[:1, :, : FREE - 1].transpose(0, 1)], dim=2)
        sequence = torch.tensor([prompt + tokens[row, : FREE - 1].tolist()])
        with torch.no_grad():
            own = adapter.model(input_ids=sequence, position_ids=positions).logits
        torch.testing.assert_close(logits[row, :FREE], own[0, len(prompt) - 1 :, :CODES], rtol=0, atol=1e-9)


def test_tuning_on_own_drafts(adapter):
    settings = DraftSettings(clean=0.4, anchor=0.5, guidance=(1.0, 1.0))
    trajectories = record(adapter, PROMPTS, resolve_preset("mc-sjd", window=6), [1.0, 1.0], torch.arange(2), temperature=0.9, top_k=0)
    assert [one.tokens[-1] for one in trajectories] == [CODES] * 2
    noise = TuningNoise(NoiseLevels.karras(2), windows=2, window=5, segment=(1, 2))
    torch.manual_seed(0)
    with torch.no_grad():
        found = DraftDistillation(adapter, noise, adapter, settings)(**DraftCollator(adapter, noise, settings)(trajectories))
    assert found["loss"].isfinite()
    assert (found["drift"].abs() < 1e-5).all()  # the model is its own teacher: both see the same positions


def test_the_full_size_model():
    with torch.device("meta"):
        model = GlmImageForConditionalGeneration(GlmImageConfig()).to(torch.bfloat16)
    adapter = GlmImageAdapter(model, None)
    assert (adapter.vocab_size, adapter.grid) == (16384, (32, 32))
    layout = adapter.layout(1)
    assert layout.forced.shape == (1, 16 * 16 + 32 * 32 + 1)
    assert layout.places.shape == (3, 1281)
    text = adapter.text_config
    head_size = text.hidden_size // text.num_attention_heads
    assert 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size == 40 * 1024  # bytes per token in bfloat16
    assert sum(parameter.numel() for parameter in model.model.language_model.parameters()) == 8_847_155_200
