"""Tuning on the model's own drafts: what is recorded, what batches are made of it, what the loss measures, the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from sjd2 import TextToImagePipeline
from sjd2.cli import main as sjd2
from sjd2.decoding import TokenLayout, resolve_preset
from sjd2.denoising import NoiseLevels
from sjd2.training import (
    DraftCollator,
    DraftDistillation,
    DraftPool,
    DraftSettings,
    Trajectory,
    TuningNoise,
    add_lora,
    build_draft_trainer,
    merge_lora,
    read_prompts,
    record,
)
from support.tuning import CODES, TOKENS, load_model

PROMPTS = ["a bag", "a red coat on a yellow background", "a blue boot"]
NOISE = TuningNoise(NoiseLevels.karras(2), windows=3, window=5, segment=(1, 2))
SETTINGS = DraftSettings(clean=0.4, anchor=0.5, branch_anchor=0.1, guidance=(1.0, 3.0), pool=24, first=8, renewed=8, every=10)
PRESET = resolve_preset("mc-sjd", window=6)


@pytest.fixture(scope="module")
def trajectories(folder) -> list[Trajectory]:
    return record(load_model(folder), PROMPTS * 4, PRESET, [1.0, 1.5, 3.0] * 4, torch.arange(12), temperature=0.9, top_k=20)


def collate(adapter, trajectories, noise=NOISE) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return DraftCollator(adapter, noise, SETTINGS)(trajectories)


def test_a_trajectory_is_what_happened(trajectories):
    rejections = 0
    for one in trajectories:
        committed = one.committed.tolist()
        assert committed == sorted(set(committed))
        assert committed[-1] == TOKENS == len(one.tokens)
        assert one.drafts.shape == (len(committed) - 1, 6)
        for (before, after), drafts in zip(pairwise(committed), one.drafts, strict=True):
            kept = after - before - 1  # the last committed token is a redraw, unless the window or the image ended
            assert torch.equal(drafts[:kept], one.tokens[before : before + kept])
            if kept < 5 and after < TOKENS:
                assert drafts[kept] != one.tokens[after - 1]
                rejections += 1
    assert rejections > 20


def test_rows_leave_the_batch_without_taking_their_drafts_along(folder, trajectories):
    (alone,) = record(load_model(folder), PROMPTS[1:2], PRESET, [1.5], torch.tensor([1]), temperature=0.9, top_k=20)
    assert torch.equal(alone.tokens, trajectories[1].tokens)
    assert torch.equal(alone.drafts, trajectories[1].drafts)


def test_batches_hold_windows_of_their_trajectories(adapter, trajectories):
    batch = collate(adapter, trajectories)
    assert batch["prompt_ids"].shape[0] == 2 * len(trajectories)
    assert batch["levels"].shape == batch["drafts"].shape == (len(trajectories), 3, 5)
    for row, one in enumerate(trajectories):
        committed = one.committed.tolist()
        for start, resumed, drafts in zip(batch["start"][row].tolist(), batch["resumed"][row].tolist(), batch["drafts"][row], strict=True):
            i = committed.index(start)
            assert resumed == committed[i + 1]
            assert start + 5 < TOKENS
            assert torch.equal(drafts, one.drafts[i, :5].long())
    levels = batch["levels"]
    assert (levels[..., :2] == 0).all()
    assert (levels.diff(dim=-1) >= 0).all()
    assert levels.max() == 2
    assert batch["free"].all()


def test_true_tokens_in_place_of_drafts_predict_what_the_image_predicts(adapter, trajectories):
    batch = collate(adapter, trajectories)
    place = batch["start"][..., None] + torch.arange(5)
    batch["drafts"] = batch["tokens"][torch.arange(len(trajectories))[:, None, None], place]
    batch["levels"] = torch.zeros_like(batch["levels"])
    adapter.defaults = replace(adapter.defaults, top_k=0)  # what is learnt would be cut, the prediction is not
    model = DraftDistillation(adapter, NOISE, adapter, SETTINGS)
    image, slots = model.window_logits(*(batch[name] for name in ("prompt_ids", "prompt_mask", "tokens", "start", "drafts", "levels")))
    rows = torch.arange(len(image))[:, None, None]
    assert torch.allclose(slots, image[rows, (place + 1).repeat(2, 1, 1)], atol=1e-9)
    batch["resumed"] = batch["start"]
    found = model(**batch)
    assert torch.allclose(found["drift"], torch.zeros(1), atol=1e-5)
    assert torch.allclose(found["overlap"], torch.ones(1), atol=1e-4)


def test_conditional_and_unconditional_rows_are_fed_the_same_noise(adapter, trajectories, monkeypatch):
    batch = collate(adapter, trajectories[:2])
    batch["levels"] = torch.full_like(batch["levels"], 2)
    fed = []
    logits = type(adapter).logits

    def spy(self, embeds, *arguments, **options):
        fed.append(embeds)
        return logits(self, embeds, *arguments, **options)

    monkeypatch.setattr(type(adapter), "logits", spy)
    DraftDistillation(adapter, NOISE, adapter, SETTINGS)(**batch)
    windows = fed[1][:, batch["prompt_ids"].shape[1] + TOKENS - 1 :]
    assert torch.equal(windows[:2], windows[2:])
    assert not torch.equal(windows[0], windows[1])


def test_a_changed_model_drifts_and_only_its_own_weights_learn(folder, adapter, trajectories):
    batch, teacher = collate(adapter, trajectories), load_model(folder)
    same = DraftDistillation(adapter, NOISE, teacher, SETTINGS)(**batch)
    with torch.no_grad():
        adapter.model.lm_head.weight += 0.1 * torch.randn_like(adapter.model.lm_head.weight)
    changed = DraftDistillation(adapter, NOISE, teacher, SETTINGS)
    found = changed(**batch)
    assert (found["drift"] > 2 * same["drift"].clamp(min=1e-6)).all()
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in adapter.model.parameters())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert changed.state_dict().keys() == {f"model.{name}" for name, _ in adapter.model.named_parameters()}


def test_with_lora_the_model_is_its_own_teacher(folder, adapter, trajectories):
    batch, teacher = collate(adapter, trajectories), load_model(folder)
    add_lora(adapter.model, 2)
    for name, parameter in adapter.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    noise = replace(NOISE, timesteps=False)
    batch["levels"] = torch.zeros_like(batch["levels"])  # no random numbers in the forward
    own = DraftDistillation(adapter, noise, None, SETTINGS)(**batch)
    other = DraftDistillation(adapter, noise, teacher, SETTINGS)(**batch)
    assert torch.allclose(own["loss"], other["loss"])
    assert (own["drift"] > 1e-4).all()
    own["loss"].backward()
    learning = {name for name, parameter in adapter.model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in adapter.model.named_parameters() if "lora_" in name}
    merge_lora(adapter.model)


def test_structural_tokens_stay_clean_and_are_not_learnt(adapter, trajectories, monkeypatch):
    forced = torch.full((1, TOKENS), -1)
    forced[:, 3::4] = 7
    monkeypatch.setattr(adapter, "layout", lambda batch_size: TokenLayout(forced, torch.tensor([TOKENS])))
    batch = collate(adapter, trajectories)
    fed = batch["start"][..., None] + torch.arange(5)
    assert (batch["levels"][fed % 4 == 3] == 0).all()
    assert batch["levels"].max() == 2
    assert torch.equal(batch["free"], (fed + 1) % 4 != 3)
    model = DraftDistillation(adapter, NOISE, adapter, SETTINGS)
    torch.manual_seed(0)
    before = model(**batch)["overlap"]
    torch.manual_seed(0)
    assert not torch.equal(model(**{**batch, "free": torch.ones_like(batch["free"])})["overlap"], before)


def test_an_image_without_a_window_has_no_weight(adapter, trajectories):
    short = replace(trajectories[0], committed=torch.tensor([TOKENS]), drafts=trajectories[0].drafts[:0])
    found = DraftDistillation(adapter, NOISE, adapter, SETTINGS)(**collate(adapter, [short, trajectories[1]]))
    assert found["overlap"].isnan().tolist() == [True, False]
    assert found["loss"].isfinite()


def test_an_unchanged_model_has_not_drifted_whatever_sampling_cuts_off(adapter, trajectories):
    adapter.defaults = replace(adapter.defaults, top_k=3, top_p=0.8)
    found = DraftDistillation(adapter, NOISE, adapter, SETTINGS)(**collate(adapter, trajectories))
    assert torch.allclose(found["drift"], torch.zeros(1), atol=1e-5)


def test_a_model_without_teacher_and_lora_is_refused(adapter):
    with pytest.raises(ValueError, match="teacher: expected a frozen copy of the model"):
        DraftDistillation(adapter, NOISE)


@pytest.mark.parametrize(("settings", "message"), [({"window": 9}, "window: expected at most 8"), ({"layout": "segments"}, "layout: own drafts")])
def test_windows_that_do_not_fit_are_refused(adapter, settings, message):
    with pytest.raises(ValueError, match=message):
        DraftCollator(adapter, replace(NOISE, **settings), SETTINGS)


def trainer_for(folder, place, steps, **settings):
    torch.manual_seed(0)
    student, teacher = load_model(folder, torch.float32), load_model(folder, torch.float32)
    pool = DraftPool(student, PROMPTS, replace(SETTINGS, **settings), preset=PRESET)
    arguments = TrainingArguments(
        output_dir=str(place), max_steps=steps, per_device_train_batch_size=4, learning_rate=2e-3, use_cpu=True, report_to=[],
        save_steps=5, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    held_out = record(teacher, PROMPTS * 2, PRESET, [2.0] * 6, torch.arange(6), temperature=0.9, top_k=100)
    return build_draft_trainer(DraftDistillation(student, NOISE, teacher, pool.settings), pool, held_out, arguments), pool, teacher


def test_tuning_makes_stale_predictions_truer(folder, tmp_path):
    trainer, pool, teacher = trainer_for(folder, tmp_path, 40)
    frozen = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_overlap"] > before["eval_overlap"]
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.model.state_dict().items())
    assert len(pool.trajectories) == 24  # the oldest made room


def test_a_killed_training_goes_on_at_its_checkpoint_with_new_drafts(folder, tmp_path):
    trainer, pool, _ = trainer_for(folder, tmp_path, 5)
    trainer.train()
    before = pool.recorded
    trainer, pool, _ = trainer_for(folder, tmp_path, 10)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert trainer.state.global_step == 10
    assert pool.recorded > before  # other prompts than those of the beginning


def test_a_pool_draws_what_its_seed_says(adapter):
    def drawn(seed):
        pool = DraftPool(adapter, PROMPTS, SETTINGS, preset=PRESET, seed=seed)
        pool.renew(5)
        return [(one.prompt, one.guidance_scale, one.tokens.tolist()) for one in pool.trajectories]

    assert len(drawn(0)) == 5
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert all(1 <= scale <= 3 and max(tokens) < CODES for _, scale, tokens in drawn(0))


@pytest.fixture
def place(tmp_path, monkeypatch, folder):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = [
    "--steps",
    "4",
    "--batch-size",
    "2",
    "--windows",
    "2",
    "--window",
    "6",
    "--levels",
    "2",
    "--save-every",
    "2",
    "--first",
    "2",
    "--renewed",
    "2",
]


def command(*arguments: str) -> int:
    return sjd2(["finetune", "--own-drafts", "--model", "model", "--device", "cpu", "-o", "tuned", *SHORT, *arguments])


def test_the_command_makes_a_folder_that_decodes(place, capsys):
    assert command("--data", "prompts.txt", "--learning-rate", "1e-3", "--held-out", "0.3", "--eval-every", "2", "--every", "2") == 0
    report = capsys.readouterr().out
    assert "2 prompts, 1 held out, 4 steps of 2" in report
    assert report.count("own drafts recorded") == 2
    assert report.count("held out: overlap") == 3
    log = json.loads((place / "tuned" / "training_log.json").read_text())
    assert [row["step"] for row in log["evaluations"]] == [0, 2, 4]
    assert all({"overlap", "drift"} <= row.keys() for row in log["evaluations"])
    before, after = (load_file(place / folder / "model.safetensors") for folder in ("model", "tuned"))
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    output = TextToImagePipeline.from_pretrained("tuned", device="cpu")("a bag", method="sjd2", window=8)
    assert output.tokens.shape == (1, TOKENS)
    assert sorted(path.name for path in place.iterdir()) == ["model", "prompts.txt", "tuned"]


def test_the_command_with_lora(place):
    assert command("--data", "prompts.txt", "--lora", "2", "--held-out", "0") == 0
    assert load_file(place / "tuned" / "model.safetensors").keys() == load_file(place / "model" / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prompts.csv", "a", "expected a file of prompts, .txt or .jsonl"),
        ("nowhere.txt", None, "is no file"),
        ("empty.txt", "\n\n", "expected at least one prompt"),
        ("bad.jsonl", '{"prompt": "a bag"}\n{"tokens": [1]}\n', "line 2: expected"),
        ("worse.jsonl", "{\n", "line 1: "),
        ("long.txt", "a " * 300, "prompt: expected at most"),
    ],
)
def test_bad_prompts_are_named(place, capsys, name, text, message):
    if text is not None:
        (place / name).write_text(text)
    assert command("--data", name) == 1
    assert message in capsys.readouterr().err
    assert not (place / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--epochs", "2", "--own-drafts"], "--epochs: means nothing with"), (["--anchor", "2"], "--anchor: means nothing without")],
)
def test_options_of_the_other_recipe_are_refused(place, capsys, options, message):
    assert sjd2(["finetune", "--data", "prompts.txt", "--model", "model", "-o", "tuned", *options]) == 1
    assert message in capsys.readouterr().err


def test_prompts_are_read_from_either_field(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a bag"}\n\n{"file_name": "0.png", "text": "a boot"}\n')
    assert read_prompts(tmp_path / "prompts.jsonl") == ["a bag", "a boot"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 0}, "pool: expected a whole number >= 1, got 0"),
        ({"clean": 1.5}, "clean: expected a share"),
        ({"anchor": float("nan")}, "anchor: expected a number >= 0"),
        ({"reach": 0.0}, "reach: expected a number > 0"),
        ({"pool": 10, "first": 20}, "first, renewed: expected at most pool = 10"),
        ({"guidance": (3.0, 1.0)}, "guidance: expected 0 < lowest <= highest"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DraftSettings(**settings)
