"""The training forward: that of the model on clean inputs, that of decoding on noisy ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sjd2.denoising import Denoising, EmbeddingStatistics, NoiseLevels
from sjd2.denoising.window import Denoiser, NoisyWindow
from sjd2.tiny_scenes.text import TEXT_VOCAB_SIZE
from sjd2.training import NextCleanTokenModel, NoiseCollator, NoisePlan, TuningNoise
from sjd2.training.columns import lay_out
from support.tuning import CODES, TOKENS, examples, load_model, write_model

LEVELS = NoiseLevels.karras(3, t_min=0.3)
NOISE = TuningNoise(LEVELS, windows=3, window=6, segment=(1, 2))


def batch(adapter, noise, count=3, seed=5):
    collator = NoiseCollator(adapter, noise)
    return collator([{**example, "seed": seed + index} for index, example in enumerate(examples(count))])


def columns_of(made, noise):
    plan = NoisePlan(made["sequence_levels"], made["window_start"], made["window_levels"])
    return lay_out(made["prompt_mask"], plan, noise.levels.steps if noise.timesteps else 0)


@torch.no_grad()
def logits_and_inputs(adapter, noise, made, monkeypatch):
    """Logits ``[B, 1 + C, V]`` and the embeddings ``[B, C, D]`` of the C image inputs that gave them."""
    seen = []
    forward = adapter.logits
    monkeypatch.setattr(adapter, "logits", lambda embeds, *args, **options: seen.append(embeds) or forward(embeds, *args, **options))
    logits = NextCleanTokenModel(adapter, noise).logits(made["prompt_ids"], made["tokens"], columns_of(made, noise))
    monkeypatch.undo()
    width = made["prompt_ids"].shape[1]
    return logits, seen[0][:, width : width + logits.shape[1] - 1]


def test_the_collator_pads_on_the_left_and_leaves_a_plan_to_its_seed(adapter):
    made = batch(adapter, NOISE)
    captions = [example["prompt"] for example in examples(3)]
    for ids, mask, caption in zip(made["prompt_ids"], made["prompt_mask"], captions, strict=True):
        expected = adapter.text(caption)["input_ids"]
        assert mask.tolist() == [0] * (len(ids) - len(expected)) + [1] * len(expected)
        assert ids[mask > 0].tolist() == expected
    assert made["tokens"].tolist() == [example["tokens"] for example in examples(3)]
    alone = NoiseCollator(adapter, NOISE)([{**examples(3)[1], "seed": 6}])
    for name in ("sequence_levels", "window_start", "window_levels"):
        assert torch.equal(alone[name][0], made[name][1])


def test_structural_tokens_are_clean(adapter, monkeypatch):
    layout = adapter.layout(1)
    structural = torch.arange(TOKENS) % 4 == 3
    monkeypatch.setattr(adapter, "layout", lambda count: replace(layout, forced=torch.where(structural, 7, -1).expand(count, -1)))
    made = batch(adapter, NOISE, count=40)
    token = made["window_start"][..., None] + torch.arange(6)
    assert (made["window_levels"][structural[token]] == 0).all()
    assert (made["window_levels"][~structural[token]] > 0).all()


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-12), ("eager", 1e-5)])  # eager attention takes its softmax in float32
def test_clean_inputs_get_the_models_own_logits(adapter, attention, tolerance, monkeypatch):
    made = batch(adapter, NOISE)
    ids = torch.cat([made["prompt_ids"], made["tokens"][:, :-1] + TEXT_VOCAB_SIZE], 1)
    mask = torch.cat([made["prompt_mask"], torch.ones_like(made["tokens"][:, :-1])], 1)
    with torch.no_grad():
        own = adapter.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    expected = own[:, made["prompt_ids"].shape[1] - 1 :, TEXT_VOCAB_SIZE:]
    adapter.model.set_attn_implementation(attention)
    logits, _ = logits_and_inputs(adapter, NOISE, made, monkeypatch)
    torch.testing.assert_close(logits[:, :TOKENS], expected, rtol=0, atol=tolerance)


def decoded_logits(adapter, noise, prompt_ids, tokens, start, levels, embeds):
    """Logits ``[S + 1, V]`` of a window whose first slots have ``levels [S]`` and ``embeds [S, D]``, by the forward of decoding."""
    slots = len(levels)
    denoiser = Denoiser(Denoising(noise.levels, timesteps=noise.timesteps, normalise=noise.normalise), slots + 1, adapter, torch.device("cpu"))
    unfed = torch.zeros(1, 1, dtype=torch.int64)  # the last slot is predicted and not fed
    window = NoisyWindow(torch.cat([levels[None], unfed], 1), torch.cat([embeds[None], torch.zeros_like(embeds[None, :1])], 1))
    before = torch.cat([adapter.embed_ids(prompt_ids[None]), adapter.embed(tokens[None, :start])], 1)
    cache = adapter.new_cache(1, 60)
    adapter.forward(before[:, :-1], cache)
    cache.commit(torch.tensor([before.shape[1] - 1]))
    cache.levels = denoiser.input_levels(window)
    return adapter.forward(torch.cat([before[:, -1:], denoiser.inputs(window)], 1), cache)[0, : slots + 1]


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"timesteps": False}, {"normalise": False}], ids=["all", "no timesteps", "no normalisation"])
def test_noisy_inputs_get_the_logits_of_decoding(adapter, settings, monkeypatch):
    noise = replace(NOISE, **settings)
    made = batch(adapter, noise, count=8)
    made["window_start"][0, 0] = 0  # a window right behind the prompt
    made["window_levels"][1, 0, :2] = 0  # and one that begins clean
    logits, embeds = logits_and_inputs(adapter, noise, made, monkeypatch)
    differences = []
    for row in range(8):
        prompt_ids = made["prompt_ids"][row][made["prompt_mask"][row] > 0]
        for window in range(3):
            start = int(made["window_start"][row, window])
            place = TOKENS - 1 + 6 * window
            expected = decoded_logits(
                adapter, noise, prompt_ids, made["tokens"][row], start, made["window_levels"][row, window], embeds[row, place : place + 6]
            )
            got = torch.cat([logits[row, start : start + 1], logits[row, 1 + place : 1 + place + 6]])
            differences.append((got - expected).abs().max())
    assert torch.stack(differences).max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_noisy_inputs_are_the_mixture_of_embedding_and_noise(adapter, normalise, monkeypatch):
    noise = replace(NOISE, layout="segments", normalise=normalise)
    made = batch(adapter, noise, count=200)
    torch.manual_seed(0)
    _, embeds = logits_and_inputs(adapter, noise, made, monkeypatch)
    weight = adapter.image_embeddings()
    clean, levels = weight[made["tokens"][:, :-1]], made["sequence_levels"]
    assert torch.equal(embeds[levels == 0], clean[levels == 0])
    statistics = EmbeddingStatistics(weight.mean(0), weight.std(0, correction=0))
    if not normalise:
        statistics = EmbeddingStatistics.identity_like(statistics)
    for level, time in list(enumerate(LEVELS.times))[1:]:
        at = levels == level
        assert at.sum() > 100
        epsilon = (statistics.normalise(embeds[at]) - (1 - time) * statistics.normalise(clean[at])) / time
        # At least 3,200 normal numbers: five standard errors.
        assert epsilon.mean().abs() < 5 / epsilon.numel() ** 0.5
        assert (epsilon.var() - 1).abs() < 5 * (2 / epsilon.numel()) ** 0.5


def test_the_loss_is_the_mean_over_what_is_predicted_and_nll_its_parts(adapter):
    made = batch(adapter, NOISE)
    model = NextCleanTokenModel(adapter, NOISE).eval()
    result = model(**made)
    logits = model.logits(made["prompt_ids"], made["tokens"], columns_of(made, NOISE), made["noise_seed"]).log_softmax(-1)
    total, by_level = 0.0, torch.zeros(3, 4, dtype=torch.float64)
    for row in range(3):
        targets = [(target, 0) for target in range(TOKENS)]
        for start, levels in zip(made["window_start"][row].tolist(), made["window_levels"][row].tolist(), strict=True):
            targets += [(start + slot + 1, level) for slot, level in enumerate(levels)]
        assert len(targets) == logits.shape[1]
        for column, (target, level) in enumerate(targets):
            nll = -logits[row, column, made["tokens"][row, target]].item()
            total += nll
            by_level[row, level] += nll
    assert result["loss"].item() == pytest.approx(total / (3 * logits.shape[1]))
    torch.testing.assert_close(result["nll"], by_level)
    assert result["count"].sum(0)[0] == 3 * TOKENS
    assert result["count"].sum() == 3 * logits.shape[1]


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_gradients_reach_every_parameter(adapter, layout):
    noise = replace(NOISE, layout=layout)
    NextCleanTokenModel(adapter, noise)(**batch(adapter, noise, count=8))["loss"].backward()
    for name, parameter in adapter.model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert (adapter.image_embeddings().shape[0], CODES) == (CODES, adapter.vocab_size)


def test_gradient_checkpointing_changes_no_gradient(folder):
    gradients = []
    for checkpointing in (False, True):
        adapter = load_model(folder)
        model = NextCleanTokenModel(adapter, NOISE).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in adapter.model.model.layers)
        torch.manual_seed(2)
        model(**batch(adapter, NOISE))["loss"].backward()
        gradients.append([parameter.grad for parameter in adapter.model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-12)


def test_the_state_is_that_of_the_trained_parameters(adapter):
    model = NextCleanTokenModel(adapter, NOISE)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    adapter.model.requires_grad_(False)
    adapter.model.lm_head.requires_grad_(True)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert list(state) == ["model.lm_head.weight"]
    model.load_state_dict(state)
    assert torch.equal(adapter.model.lm_head.weight, state["model.lm_head.weight"])
    with pytest.raises(RuntimeError, match=r"state_dict: expected the trained parameters, got 1 too few, \['other'\] too many"):
        model.load_state_dict({"other": torch.zeros(1)})


def test_tied_weights_are_in_the_state_once(tmp_path):
    adapter = load_model(write_model(tmp_path / "tied", tied=True))
    names = list(NextCleanTokenModel(adapter, NOISE).state_dict())
    assert "model.model.embed_tokens.weight" in names
    assert "model.lm_head.weight" not in names
