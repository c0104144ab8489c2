"""Tuning on the model's own drafts: what is recorded, what batches are made of it, what the loss measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from sjd2.adapters import SamplingDefaults
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.decoding import Prompt, TokenLayout, resolve_preset
from sjd2.denoising import NoiseLevels
from sjd2.training.distillation import DraftCollator, DraftDistillation, DraftSettings
from sjd2.training.own_drafts import DraftPool, build_distillation
from sjd2.training.trajectories import Trajectory, record
from support.llama import FIRST_IMAGE_ID, IMAGE_IDS, random_llama

SIDE = 4
COUNT = SIDE * SIDE
PROMPTS = ["a", "a b", "a b c"]


class Words:
    """A tokenizer of one-letter words: ids 1 … 3; 4 begins every caption."""

    def __call__(self, texts, **_):
        rows = [[4, *("abc".index(word) + 1 for word in text.split())] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class Painter(SlicedCausalLM):
    """A random Llama as an adapter."""

    defaults = SamplingDefaults(guidance_scale=2.0)

    def __init__(self, dtype=torch.float64):
        model = random_llama(dtype=dtype)
        with torch.no_grad():  # as it comes its predictions are nearly one-hot, and any two of them share nothing
            model.lm_head.weight *= 0.3
        super().__init__(model, FIRST_IMAGE_ID, IMAGE_IDS)
        self.text = Words()

    def prompt(self, prompts, negative):
        encoded = self.text([*prompts, *(negative or ())])
        lengths = encoded["attention_mask"].sum(1)
        rows = [row[-int(length) :] for row, length in zip(encoded["input_ids"], lengths, strict=True)]
        return Prompt(self.embed_ids(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)), lengths)

    def layout(self, batch_size):
        return TokenLayout.grid(batch_size, SIDE, SIDE)


SETTINGS = DraftSettings(
    NoiseLevels.karras(2), windows=3, window=5, clean_run=2, per_level=1, temperature=0.7, top_k=20, anchor=0.5, branch_anchor=0.1
)


@pytest.fixture(scope="module")
def trajectories() -> list[Trajectory]:
    return record(Painter(), PROMPTS * 4, resolve_preset("mc-sjd", window=6), [1.0, 1.5, 3.0] * 4, torch.arange(12), temperature=0.7, top_k=20)


def test_a_trajectory_is_what_happened(trajectories):
    rejections = 0
    for one in trajectories:
        committed = one.committed.tolist()
        assert committed == sorted(set(committed))
        assert committed[-1] == COUNT == len(one.tokens)
        assert one.drafts.shape == (len(committed) - 1, 6)
        for before, after, drafts in zip(committed, committed[1:], one.drafts, strict=False):
            kept = after - before - 1  # the last committed token is a redraw, unless the window or the image ended
            assert torch.equal(drafts[:kept], one.tokens[before : before + kept])
            if kept < 5 and after < COUNT:
                assert drafts[kept] != one.tokens[after - 1]
                rejections += 1
    assert rejections > 20


def test_rows_leave_the_batch_without_taking_their_drafts_along(trajectories):
    alone = record(Painter(), PROMPTS[1:2], resolve_preset("mc-sjd", window=6), [1.5], torch.tensor([1]), temperature=0.7, top_k=20)
    assert torch.equal(alone[0].tokens, trajectories[1].tokens)
    assert torch.equal(alone[0].drafts, trajectories[1].drafts)


def test_batches_hold_windows_of_their_trajectories(trajectories):
    torch.manual_seed(0)
    batch = DraftCollator(Words(), SETTINGS)(trajectories)
    assert batch["prompt_ids"].shape[0] == 2 * len(trajectories)
    assert batch["levels"].shape == batch["drafts"].shape == (len(trajectories), 3, 5)
    for row, one in enumerate(trajectories):
        committed = one.committed.tolist()
        for start, resumed, drafts in zip(batch["start"][row].tolist(), batch["resumed"][row].tolist(), batch["drafts"][row], strict=True):
            i = committed.index(start)
            assert resumed == committed[i + 1]
            assert start + 5 < COUNT
            assert torch.equal(drafts, one.drafts[i, :5].long())
    levels = batch["levels"]
    assert (levels[..., :2] == 0).all()
    assert (levels.diff(dim=-1) >= 0).all()
    assert levels.max() == 2


def _model(**settings) -> DraftDistillation:
    adapter = Painter()
    return DraftDistillation(adapter, adapter, replace(SETTINGS, **settings))


def test_true_tokens_in_place_of_drafts_predict_what_the_image_predicts(trajectories):
    batch = DraftCollator(Words(), SETTINGS)(trajectories)
    place = batch["start"][..., None] + torch.arange(5)
    batch["drafts"] = batch["tokens"][torch.arange(len(trajectories))[:, None, None], place]
    batch["levels"] = torch.zeros_like(batch["levels"])
    model = _model(top_k=0)  # the teacher's distributions would be cut, the student's are not
    image, slots = model._logits(
        model.adapter, batch["prompt_ids"], batch["prompt_mask"], {key: batch[key] for key in ("start", "drafts", "levels")}, batch["tokens"]
    )
    rows = torch.arange(len(image))[:, None, None]
    assert torch.allclose(slots, image[rows, (place + 1).repeat(2, 1, 1)], atol=1e-5)
    batch["resumed"] = batch["start"]
    found = model(**batch)
    assert torch.allclose(found["drift"], torch.zeros(1), atol=1e-5)
    assert torch.allclose(found["overlap"], torch.ones(1), atol=1e-4)


def test_stale_drafts_share_less_and_a_changed_model_drifts(trajectories):
    torch.manual_seed(0)
    batch = DraftCollator(Words(), SETTINGS)(trajectories)
    same = _model()(**batch)
    teacher, student = Painter(), Painter()
    with torch.no_grad():
        student.model.lm_head.weight += 0.1 * torch.randn_like(student.model.lm_head.weight)
    changed = DraftDistillation(student, teacher, SETTINGS)(**batch)
    assert (changed["drift"] > 2 * same["drift"]).all()
    assert changed["loss"] > same["loss"]
    assert 0 < same["overlap"].mean() < 0.9


def _train(tmp_path, steps, **settings):
    torch.manual_seed(0)
    student, teacher = Painter(torch.float32), Painter(torch.float32)
    student.model.requires_grad_(True)
    pool = DraftPool(student, PROMPTS, SETTINGS, preset=resolve_preset("mc-sjd", window=6), size=8, batch_size=4)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to=[],
        logging_steps=1, save_steps=5, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    held_out = record(teacher, PROMPTS, pool.preset, [2.0] * 3, torch.arange(3), temperature=0.7, top_k=20)
    trainer = build_distillation(DraftDistillation(student, teacher, SETTINGS), pool, arguments, first=4, every=4, renewed=4, evaluation=held_out)
    return trainer, pool, teacher


def test_tuning_makes_stale_predictions_truer_and_leaves_the_teacher_alone(tmp_path):
    trainer, pool, teacher = _train(tmp_path, 40)
    frozen = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_overlap"] > before["eval_overlap"]
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.model.state_dict().items())
    assert len(pool.trajectories) == 8  # the oldest made room
    assert not any("teacher" in name for name in trainer.model.state_dict())


def test_a_killed_training_goes_on_at_its_checkpoint_with_new_drafts(tmp_path):
    trainer, _, _ = _train(tmp_path, 5)
    trainer.train()
    trainer, pool, _ = _train(tmp_path, 10)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert trainer.state.global_step == 10
    assert pool.recorded >= 5 * pool.size  # other prompts than those of the beginning


def test_a_pool_draws_what_its_seed_says():
    def prompts(seed):
        pool = DraftPool(Painter(), PROMPTS, SETTINGS, preset=resolve_preset("mc-sjd", window=6), size=8, batch_size=4, seed=seed)
        pool.renew(5)
        return [(one.prompt, one.guidance_scale) for one in pool.trajectories]

    assert len(prompts(0)) == 8  # whole batches
    assert prompts(0) == prompts(0) != prompts(1)


@pytest.mark.parametrize(
    ("settings", "message"), [({"prompts": []}, "prompts: expected at least one"), ({"size": 0}, "size, batch_size: expected whole numbers >= 1")]
)
def test_bad_settings_of_a_pool_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DraftPool(Painter(), **{"prompts": PROMPTS, "settings": SETTINGS, **settings})
