"""On the stock ``Trainer``: the loss falls, a resumed run is the uninterrupted one, evaluation disturbs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

from sjd2.denoising import NoiseLevels
from sjd2.training import NextCleanTokenModel, NoiseCollator, TuningNoise, add_lora, build_trainer, last_checkpoint, nll_by_level
from support.tuning import examples, load_model

NOISE = TuningNoise(NoiseLevels.karras(3), windows=2, window=6, segment=(1, 2))


def trainer_of(adapter, out: Path, steps: int = 6, *, count=20, evaluate=False, callbacks=(), seed=3, noise=NOISE, drop_captions=0.3, **arguments):
    arguments = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 3, "logging_steps": 1, "max_steps": steps} | arguments
    made = TrainingArguments(str(out), use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False, seed=seed, **arguments)
    if evaluate:
        made.eval_strategy, made.eval_steps = "steps", 2
    model, collator = NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise)
    held_out = examples(6, seed=1) if evaluate else None
    return build_trainer(model, collator, examples(count), held_out, made, list(callbacks), drop_captions=drop_captions)


def weights(adapter) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in adapter.model.parameters()]


def same(first, second) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_the_loss_falls_on_clean_and_noisy_inputs(folder, tmp_path, layout):
    noise = TuningNoise(NOISE.levels, layout, 2, 6, (1, 2))
    adapter = load_model(folder, torch.float32)
    trainer = trainer_of(adapter, tmp_path, 40, count=200, evaluate=True, noise=noise)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_clean_nll", "eval_noisy_nll", "eval_level_1_nll", "eval_level_2_nll"):
        assert after[name] < before[name] - 0.2, name


@pytest.mark.parametrize(
    ("lora", "accumulation", "workers"), [(None, 1, 0), (None, 2, 0), (2, 1, 0), (None, 1, 1)], ids=["all", "accumulated", "lora", "a worker"]
)
def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path, lora, accumulation, workers):
    def run(out, stop=None, resume=None):
        adapter = load_model(folder, torch.float32)
        if lora:
            torch.manual_seed(0)
            add_lora(adapter.model, lora)
        torch.manual_seed(len(out.name))  # nothing may depend on it
        stops = [] if stop is None else [StopAt(stop)]
        trainer = trainer_of(
            adapter, out, 6, evaluate=True, callbacks=stops, gradient_accumulation_steps=accumulation, dataloader_num_workers=workers
        )
        trainer.train(resume_from_checkpoint=resume)
        return adapter, trainer

    expected, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=5)
    (tmp_path / "cut" / "checkpoint-4").mkdir()  # begun, and cut short by the kill
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint == str(tmp_path / "cut" / "checkpoint-3")
    assert not (tmp_path / "cut" / "checkpoint-4").exists()
    resumed, trainer = run(tmp_path / "cut", resume=checkpoint)
    assert same(weights(resumed), weights(expected))
    assert trainer.state.global_step == 6
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (whole, trainer)]
    assert losses[0] == losses[1]


def test_evaluation_has_the_same_noise_every_time_and_disturbs_nothing(folder, tmp_path):
    found = []
    for evaluate in (False, True):
        adapter = load_model(folder, torch.float32)
        trainer = trainer_of(adapter, tmp_path / str(evaluate), evaluate=evaluate)
        if evaluate:
            figures = [trainer.evaluate() for _ in range(2)]
            assert {name: value for name, value in figures[0].items() if "nll" in name} == {
                name: value for name, value in figures[1].items() if "nll" in name
            }
        trainer.train()
        found.append(weights(adapter))
    assert same(*found)


def test_the_seed_decides(folder, tmp_path):
    found = []
    for seed in (1, 2):
        adapter = load_model(folder, torch.float32)
        trainer_of(adapter, tmp_path / str(seed), 2, seed=seed).train()
        found.append(weights(adapter))
    assert not same(*found)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own(adapter, tmp_path):
    trainer = trainer_of(adapter, tmp_path, 0, count=10, num_train_epochs=1, drop_captions=0.0)
    assert trainer.args.max_steps == 3  # the last of four examples begins the next epoch
    trainer = trainer_of(adapter, tmp_path, 0, count=10, num_train_epochs=2, drop_captions=0.0)
    assert trainer.args.max_steps == 5
    seen = [trainer.train_dataset[index] for index in range(20)]
    epochs = [[tuple(example["tokens"]) for example in part] for part in (seen[:10], seen[10:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(example["tokens"]) for example in examples(10))
    assert epochs[0] != epochs[1]
    assert len({example["seed"] for example in seen}) == 20


def test_captions_are_dropped_at_their_rate(adapter, tmp_path):
    data = [{"prompt": "a bag", "tokens": examples(1)[0]["tokens"]}] * 10
    arguments = TrainingArguments(str(tmp_path), max_steps=1000, per_device_train_batch_size=4, use_cpu=True, report_to=[])
    trainer = build_trainer(NextCleanTokenModel(adapter, NOISE), NoiseCollator(adapter, NOISE), data, data, arguments, drop_captions=0.25)
    dropped = sum(trainer.train_dataset[index]["dropped"] for index in range(4000))
    assert 850 < dropped < 1150  # five standard errors
    assert not any(trainer.eval_dataset[index].get("dropped") for index in range(10))


def test_a_dataset_that_fetches_many_at_once_is_asked_to(adapter, tmp_path):
    asked = []

    class Fetching(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            raise AssertionError("asked one by one")

        def __getitems__(self, indices):
            asked.append(len(indices))
            return [examples(8)[index] for index in indices]

    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[], save_strategy="no")
    build_trainer(NextCleanTokenModel(adapter, NOISE), NoiseCollator(adapter, NOISE), Fetching(), None, arguments).train()
    assert asked == [4, 4]


def test_nll_by_level_is_a_mean_over_tokens():
    sums, counts = torch.tensor([[6.0, 4.0, 0.0], [2.0, 0.0, 0.0]]).numpy(), torch.tensor([[3, 1, 0], [1, 1, 0]]).numpy()
    figures = nll_by_level(EvalPrediction(predictions=(sums, counts), label_ids=None))
    assert figures == {"clean_nll": 2.0, "noisy_nll": 2.0, "level_1_nll": 2.0}


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    assert last_checkpoint(tmp_path) is None


def test_bad_settings_are_named(adapter, tmp_path):
    with pytest.raises(ValueError, match=r"drop_captions: expected a number in \[0, 1\], got 2"):
        trainer_of(adapter, tmp_path, drop_captions=2)
    with pytest.raises(ValueError, match="train: expected at least one example, got none"):
        trainer_of(adapter, tmp_path, count=0)
