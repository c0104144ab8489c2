"""The command from data to a folder that decodes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sjd2 import TextToImagePipeline, load_adapter
from sjd2.cli import main as sjd2
from sjd2.training import FinetuneSettings, TuningNoise, finetune
from support.cli import one_line_error
from support.tuning import examples, write_images, write_tokens


@pytest.fixture
def place(tmp_path, monkeypatch, folder) -> Path:
    """A working folder with ``model``, ``tokens.jsonl`` and ``pictures``."""
    shutil.copytree(folder, tmp_path / "model")
    write_tokens(tmp_path / "tokens.jsonl", 20)
    write_images(tmp_path / "pictures", 6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = ["--steps", "6", "--batch-size", "4", "--windows", "2", "--window", "6", "--levels", "3", "--save-every", "2"]


def command(*arguments: str, data: str = "tokens.jsonl", output: str = "tuned") -> int:
    return sjd2(["finetune", "--data", data, "--model", "model", "--device", "cpu", "-o", output, *SHORT, *arguments])


def interrupted_at(step: int, monkeypatch) -> None:
    """The next training is interrupted when it reports this step."""

    def interrupt(line, **options):
        if line.startswith(f"step {step} of") and "loss" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupt)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_folder_of_tokens_becomes_a_tuned_model(place, capsys):
    assert command("--learning-rate", "1e-2", "--held-out", "0.2", "--eval-every", "3") == 0
    report = capsys.readouterr().out
    assert "16 examples, 4 held out, 6 steps of 4" in report
    assert re.search(r"step 0 of 6: held out: NLL \d\.\d{3}, noisy \d\.\d{3} \(by level: \d\.\d{3} \d\.\d{3} \d\.\d{3}\)", report)
    assert re.search(r"step 3 of 6: loss \d\.\d{3}, learning rate", report)
    assert report.endswith("tuned: done\n")
    assert sorted(path.name for path in place.iterdir()) == ["model", "pictures", "tokens.jsonl", "tuned"]

    pipeline = TextToImagePipeline.from_pretrained("tuned", device="cpu")
    entry = json.loads((place / "tuned" / "config.json").read_text())["sjd2"]["denoising"]
    assert entry == {"times": list(pipeline.adapter.denoising.levels.times), "timesteps": True, "normalise": True}
    assert len(entry["times"]) == 4
    assert pipeline("a bag", method="sjd2").images[0].size == (8, 8)
    before, after = weights("model"), weights("tuned")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)

    log = json.loads((place / "tuned" / "training_log.json").read_text())
    assert [row["step"] for row in log["evaluations"]] == [0, 3, 6]
    assert log["evaluations"][-1].keys() == {"step", "seconds", "clean_nll", "noisy_nll", "level_1_nll", "level_2_nll", "level_3_nll"}
    assert [row["step"] for row in log["training"]] == [3, 6]
    assert log["training"][-1].keys() == {"step", "seconds", "loss", "learning_rate"}
    assert (log["examples"], log["held_out"]) == (16, 4)
    assert log["command"]["learning_rate"] == 1e-2


def test_images_and_data_of_its_own_to_evaluate_on(place, capsys):
    assert command("--eval-data", "tokens.jsonl", "--layout", "segments", "--no-timesteps", "--no-normalise", data="pictures") == 0
    assert "6 examples, 20 held out" in capsys.readouterr().out
    entry = json.loads((place / "tuned" / "config.json").read_text())["sjd2"]["denoising"]
    assert (entry["timesteps"], entry["normalise"]) == (False, False)


def test_weights_keep_the_dtype_they_were_stored_in(place):
    adapter = load_adapter("model", device="cpu")
    adapter.stored_dtype = torch.float16
    adapter.save_pretrained(place / "half")
    assert sjd2(["finetune", "--data", "tokens.jsonl", "--model", "half", "--device", "cpu", "-o", "tuned", *SHORT, "--quiet"]) == 0
    assert {value.dtype for value in weights("tuned").values()} == {torch.float16}
    assert json.loads((place / "tuned" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_lora_in_bfloat16_is_merged(place, capsys, stored):
    pytest.importorskip("peft")
    adapter = load_adapter("model", device="cpu")
    adapter.stored_dtype = stored
    adapter.save_pretrained(place / "half")
    arguments = ["--lora", "4", "--bf16", "--gradient-checkpointing", "--learning-rate", "1e-2", "--held-out", "0"]
    assert sjd2(["finetune", "--data", "tokens.jsonl", "--model", "half", "--device", "cpu", "-o", "tuned", *SHORT, *arguments]) == 0
    report = capsys.readouterr().out
    assert "held out:" not in report
    trained = int(re.search(r"^([\d,]+) parameters", report)[1].replace(",", ""))
    assert trained == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    before, after = weights("half"), weights("tuned")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert TextToImagePipeline.from_pretrained("tuned", device="cpu")("a bag", method="sjd2").tokens.shape == (1, 16)
    assert json.loads((place / "tuned" / "training_log.json").read_text())["evaluations"] == []


@pytest.mark.parametrize("extra", [[], ["--lora", "2"]], ids=["all", "lora"])
def test_the_same_command_goes_on_where_it_was_interrupted(place, monkeypatch, capsys, extra):
    if extra:
        pytest.importorskip("peft")
    arguments = ["--learning-rate", "1e-2", "--eval-every", "1", *extra]
    assert command(*arguments, output="whole") == 0
    torch.manual_seed(1234)  # nothing may depend on what came before
    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        assert command(*arguments) == 130
    assert sorted(path.name for path in (place / "tuned.tuning").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (place / "tuned").exists()
    capsys.readouterr()
    assert command(*arguments) == 0
    report = capsys.readouterr().out
    assert "resumed from tuned.tuning/checkpoint-4" in report
    assert "step 4 of 6" not in report
    expected, found = weights("whole"), weights("tuned")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = [json.loads((place / name / "training_log.json").read_text()) for name in ("whole", "tuned")]
    for log in logs:
        for row in (*log["evaluations"], *log["training"]):
            del row["seconds"]
    assert logs[0]["evaluations"] == logs[1]["evaluations"]
    assert logs[0]["training"] == logs[1]["training"]
    assert not (place / "tuned.tuning").exists()


def test_a_run_killed_while_it_was_written_is_written(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("sjd2.training.recipe.save_tuned", lambda *args: (_ for _ in ()).throw(OSError("No space left on device")))
        assert command() == 1
    assert capsys.readouterr().err == "error: No space left on device\n"
    assert not (place / "tuned").exists()
    assert command() == 0
    assert command(output="again") == 0
    assert all(torch.equal(value, weights("again")[name]) for name, value in weights("tuned").items())


def test_a_finished_folder_is_left_alone(place, capsys):
    assert command() == 0
    written = (place / "tuned" / "model.safetensors").stat().st_mtime_ns
    (place / "tuned.tuning" / "checkpoint-6").mkdir(parents=True)  # killed before it was removed
    capsys.readouterr()
    assert command() == 0
    assert capsys.readouterr().out == "tuned is finished\n"
    assert (place / "tuned" / "model.safetensors").stat().st_mtime_ns == written
    assert not (place / "tuned.tuning").exists()


def test_another_command_on_a_started_folder_is_an_error_that_names_what_differs(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted_at(6, patch)
        assert command("--eval-every", "1") == 130
    assert command("--eval-every", "1", "--seed", "4", "--learning-rate", "0.5") == 1
    error = capsys.readouterr().err
    assert "output: tuned.tuning was begun by another command" in error
    assert "learning_rate = 0.5 (was None), seed = 4 (was 0)" in error
    write_tokens(place / "tokens.jsonl", 21)
    assert command("--eval-every", "1") == 1
    assert "digest = " in capsys.readouterr().err
    write_tokens(place / "tokens.jsonl", 20)
    assert command("--eval-every", "1") == 0
    capsys.readouterr()
    assert command("--eval-every", "1", "--levels", "4") == 1
    assert "output: tuned was begun by another command, this one has noise.levels.times = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "0"], "steps: expected a whole number >= 1, got 0"),
        (["--layout", "rings"], "layout: expected windows or segments, got 'rings'"),
        (["--windows", "0"], "windows: expected a whole number >= 1, got 0"),
        (["--window", "-1"], "window: expected a whole number >= 1, got -1"),
        (["--segment", "4", "2"], "segment: expected 1 <= shortest <= longest, got (4, 2)"),
        (["--steps", "0"], "steps: expected a whole number >= 1, got 0"),
        (["--batch-size", "0"], "batch_size: expected a whole number >= 1, got 0"),
        (["--gradient-accumulation", "0"], "gradient_accumulation: expected a whole number >= 1, got 0"),
        (["--learning-rate", "-1"], "learning_rate: expected a number > 0, got -1.0"),
        (["--learning-rate", "nan"], "learning_rate: expected a number > 0, got nan"),
        (["--drop-captions", "2"], "drop_captions: expected a number in [0, 1], got 2.0"),
        (["--held-out", "1"], "held_out: expected a share in [0, 1), got 1.0"),
        (["--lora", "0"], "lora: expected a whole number >= 1, got 0"),
        (["--save-every", "0"], "save_every: expected a whole number >= 1, got 0"),
        (["--eval-every", "0"], "eval_every: expected a whole number >= 1, got 0"),
        (["--seed", "-1"], "seed: expected a whole number >= 0, got -1"),
        (["--data", "nowhere"], "data: nowhere does not exist"),
        (["--eval-data", "bad.jsonl"], "bad.jsonl, line 1: expected JSON, got 'x'"),
        (["--data", "one.jsonl"], "held_out: expected at least 2 examples to hold some of them out, got 1"),
        (["--model", "./nowhere"], "model: expected a folder or a hub name, got './nowhere'"),
        (["--device", "banana"], "device: expected one of cpu"),
        (["-o", "model"], "output: expected a folder that is not there yet, model holds other files"),
        (["-o", "tokens.jsonl"], "output: expected a folder that is not there yet, tokens.jsonl holds other files"),
        (["-o", "bad.jsonl/tuned"], "output: the folder bad.jsonl/tuned.tuning cannot be made: bad.jsonl is a file"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(place, capsys, arguments, message):
    (place / "bad.jsonl").write_text("x\n")
    write_tokens(place / "one.jsonl", 1)
    before = sorted(path.name for path in place.rglob("*"))
    assert command(*arguments) == 1
    assert message in one_line_error(capsys)
    assert sorted(path.name for path in place.rglob("*")) == before


def test_an_option_missing_is_bad_usage(capsys):
    for arguments in (["--data", "x"], ["-o", "x"], ["--data", "x", "-o", "y", "--steps", "3", "--epochs", "1"]):
        with pytest.raises(SystemExit) as exit_info:
            sjd2(["finetune", *arguments])
        assert exit_info.value.code == 2


def test_a_loss_that_is_no_number_ends_the_run(place, capsys):
    assert command("--learning-rate", "1e30", "--eval-every", "1") == 1
    assert re.fullmatch(r"error: loss: expected a finite number, got nan by step \d; try a lower learning rate\n", capsys.readouterr().err)
    assert not (place / "tuned").exists()


def test_a_dataset_of_ones_own(place):
    settings = FinetuneSettings(TuningNoise(windows=1, window=4), steps=2, batch_size=2, held_out=0)
    assert finetune(_Examples(), "tuned", settings, model="model", device="cpu") == Path("tuned")
    assert json.loads((place / "tuned" / "training_log.json").read_text())["command"]["data"] == "_Examples of 12"
    with pytest.raises(ValueError, match="held_out: a dataset of your own is not split; give eval_data, or held_out=0"):
        finetune(_Examples(), "other", FinetuneSettings(steps=2), model="model", device="cpu")


class _Examples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        return examples(12)[index]


@pytest.mark.parametrize(("examples", "steps"), [(16, 4), (17, 5), (3, 1)])
def test_epochs_are_steps_over_the_data(examples, steps):
    assert FinetuneSettings(epochs=2, batch_size=4, gradient_accumulation=2).steps_for(examples) == steps
