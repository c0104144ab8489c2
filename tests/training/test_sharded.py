"""Two processes that share the weights make what one makes, and each number goes on where the other stopped, sharded or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from sjd2.training import NextCleanTokenModel, NoiseCollator, TuningNoise, build_trainer
from support import in_shares, launched
from support.families import FAMILIES, save_family
from support.forked import in_ranks
from support.runs import DRAFTS, FULL, LORA, assert_same, command, place_in
from support.tuning import examples, write_model


@pytest.fixture
def place(tmp_path, monkeypatch, folder) -> Path:
    """A working folder with a model and data of each kind."""
    monkeypatch.chdir(tmp_path)
    return place_in(tmp_path, folder)


def start(commands: list, processes: int = 2) -> str:
    """What commands after each other print in several processes."""
    return "".join(rank.stdout for rank in in_ranks(launched.run_all, commands, folder=Path("ranks"), processes=processes))


def test_two_processes_that_share_the_weights_make_what_one_makes(place):
    write_model(place / "tied", tied=True)
    write_model(place / "half", dtype=torch.bfloat16)
    tied = ["--data", "tokens.jsonl", "--batch-size", "2", "--gradient-accumulation", "4", "--gradient-checkpointing"]
    own_lora = [*DRAFTS, "--lora", "2"]
    for name, recipe in (("full", FULL), ("lora", LORA)):
        assert launched.run(command(f"{name}-whole", *recipe), None) == 0
    assert launched.run(command("tied-whole", *tied, model="tied"), None) == 0
    for name, recipe in (("drafts", DRAFTS), ("own-lora", own_lora)):
        assert launched.run(command(f"{name}-whole", *recipe, "--batch-size", "2", "--gradient-accumulation", "2"), None) == 0
    assert launched.run(command("whole-then-shared", *FULL), 5) == 130
    printed = start(
        [
            (command("full-shared", *FULL, "--fsdp"), None),
            (command("lora-shared", *LORA, "--fsdp"), None),
            (command("tied-shared", *tied, "--fsdp", model="tied"), None),
            (command("drafts-shared", *DRAFTS, "--batch-size", "4", "--fsdp"), None),
            (command("own-lora-shared", *own_lora, "--batch-size", "4", "--fsdp"), None),
            (command("bf16-apart", *FULL, "--bf16"), None),
            (command("bf16-shared", *FULL, "--bf16", "--fsdp"), None),
            (command("half-apart", *FULL, "--bf16", "--lora", "2", model="half"), None),
            (command("half-shared", *FULL, "--bf16", "--lora", "2", "--fsdp", model="half"), None),
            (command("drafts-renewed", *DRAFTS, "--batch-size", "4", "--every", "2", "--fsdp"), None),
            (command("whole-then-shared", *FULL, "--fsdp"), None),
            (command("shared-then-whole", *FULL, "--fsdp"), 5),
        ]
    )
    assert printed.count("exit codes [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 130]") == 2, printed
    assert printed.count("on 2 processes, which share the weights") == 10
    assert launched.run(command("shared-then-whole", *FULL), None) == 0
    for name in ("full", "lora", "tied", "drafts", "own-lora"):
        assert_same(f"{name}-whole", f"{name}-shared", model="tied" if name == "tied" else "model")
    # The norm of gradients is summed in another order where weights are in shares: a weight between two numbers of bfloat16 may become the other one.
    assert_same("bf16-apart", "bf16-shared", log=4e-3)
    assert_same("half-apart", "half-shared", model="half")
    assert printed.count("own drafts recorded") == 1 + 1 + 3
    assert printed.count("resumed from whole-then-shared.tuning/checkpoint-4") == 1
    assert_same("full-whole", "whole-then-shared")
    assert_same("full-whole", "shared-then-whole")


@pytest.mark.full
def test_a_checkpoint_of_two_is_dealt_out_to_four(place):
    assert launched.run(command("whole", *FULL), None) == 0
    start([(command("shared", *FULL, "--fsdp"), 5)])
    assert (place / "shared.tuning" / "checkpoint-4" / "complete.json").is_file()
    printed = start([(command("shared", *FULL, "--fsdp"), None)], processes=4)
    assert "on 4 processes, which share the weights" in printed
    assert "resumed from shared.tuning/checkpoint-4" in printed
    assert_same("whole", "shared")


@pytest.mark.parametrize("families", [("janus",), pytest.param(FAMILIES, marks=pytest.mark.full)], ids=["one", "all"])
def test_weights_are_in_shares_but_while_drafts_are_recorded_and_gradients_are_those_of_a_whole_model(folder, tmp_path, families):
    families = {family: save_family(family, tmp_path / family) for family in families}
    ranks = in_ranks(in_shares.look_at_all, folder, families, folder=tmp_path / "ranks")
    assert [rank.stdout for rank in ranks] == ["as it should be\n"] * 2


def test_accelerate_launch_says_so_as_well(place):
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    script = str(Path(sys.executable).with_name("sjd2"))
    asked = [*launch, "--dynamo_backend", "no", "--use_fsdp", script, *command("shared", *FULL)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "on 2 processes, which share the weights" in done.stdout
    assert launched.run(command("whole", *FULL), None) == 0
    assert_same("whole", "shared")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "fsdp_sharding_strategy: expected FULL_SHARD, the launcher asks for HYBRID_SHARD"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "fsdp_reshard_after_forward: expected true, the launcher asks for false"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: expected false, the launcher asks for true, which is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "the launcher asks for true, which finetune's own gradient_checkpointing does"),
    ],
)
def test_what_a_launcher_may_not_ask_for_is_named_and_leaves_nothing(place, monkeypatch, capsys, name, value, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(name, value)
    assert launched.run(command("tuned", *FULL), None) == 1
    assert message in capsys.readouterr().err
    assert not list(place.glob("tuned*"))


def test_one_process_has_all_the_weights_and_the_launcher_is_left_as_it_was(place, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launched.run(command("tuned", *FULL), None) == 0
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert launched.run(command("tuned-again", *FULL, "--fsdp"), None) == 0
    assert "share the weights" not in capsys.readouterr().out
    assert_same("tuned", "tuned-again")


def test_a_trainer_of_ones_own_does_not_have_accelerate_shard_the_model(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    noise = TuningNoise(windows=1, window=4)
    model, collator, data = NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise), examples(4)
    with pytest.raises(ValueError, match="the model shards itself, by its method shard"):
        build_trainer(model, collator, data, None, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
