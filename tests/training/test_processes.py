"""Two processes make what one makes, and go on where one stopped, and the other way round."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sjd2.training import DraftPool, DraftSettings
from sjd2.training.processes import own_device, share_of_batch
from support import launched
from support.forked import in_ranks
from support.runs import DRAFTS, FULL, LORA, TORCHRUN, assert_same, command, place_in


@pytest.fixture
def place(tmp_path, monkeypatch, folder) -> Path:
    """A working folder with a model and data of each kind."""
    monkeypatch.chdir(tmp_path)
    return place_in(tmp_path, folder)


def test_two_processes_make_what_one_makes_and_each_goes_on_where_the_other_stopped(place):
    assert launched.run(command("full-by-one", *FULL), None) == 0
    assert launched.run(command("lora-by-one", *LORA), None) == 0
    # What the loss weighs differs from image to image, so its mean over four is another than that of the means over two.
    dealt = [*DRAFTS, "--batch-size", "2", "--gradient-accumulation", "2"]
    assert launched.run(command("drafts-by-one", *dealt), None) == 0
    assert launched.run(command("one-then-two", *FULL), 5) == 130
    assert launched.run(command("lora-one-then-two", *LORA), 5) == 130
    assert launched.run(command("drafts-one-then-two", *dealt), 5) == 130
    shutil.copytree("drafts-one-then-two.tuning", "drafts-one-then-one.tuning")
    commands = [
        (command("full-by-two", *FULL), None),
        (command("lora-by-two", *LORA), None),
        (command("drafts-by-two", *DRAFTS, "--batch-size", "4"), None),
        (command("drafts-renewed", *DRAFTS, "--batch-size", "4", "--every", "2"), None),
        (command("two-then-one", *FULL), 5),
        (command("one-then-two", *FULL), None),
        (command("lora-two-then-one", *LORA), 5),
        (command("lora-one-then-two", *LORA), None),
        (command("drafts-two-then-one", *dealt), 5),
        (command("drafts-one-then-two", *dealt), None),
    ]
    printed = "".join(rank.stdout for rank in in_ranks(launched.run_all, commands, folder=place / "ranks"))
    assert (place / "two-then-one.tuning" / "checkpoint-4" / "complete.json").is_file()
    for name, recipe in (("two-then-one", FULL), ("lora-two-then-one", LORA), ("drafts-two-then-one", dealt), ("drafts-one-then-one", dealt)):
        assert launched.run(command(name, *recipe), None) == 0

    for recipe in ("full", "lora", "drafts"):
        assert_same(f"{recipe}-by-one", f"{recipe}-by-two")
    assert_same("full-by-one", "one-then-two")
    assert_same("full-by-one", "two-then-one")
    assert_same("lora-by-one", "lora-one-then-two")
    assert_same("lora-by-one", "lora-two-then-one")
    # What goes on records its drafts anew: the same ones wherever it goes on, but not those of a run without an interruption.
    assert_same("drafts-one-then-one", "drafts-one-then-two")
    assert_same("drafts-one-then-one", "drafts-two-then-one")
    assert printed.count("exit codes [0, 0, 0, 0, 130, 0, 130, 0, 130, 0]") == 2
    # One of the two reports, encodes and writes.
    assert printed.count("pictures: 6 of 6 images encoded") == 1 + 1
    assert printed.count("16 examples, 4 held out, 6 steps of 4 on 2 processes") == 3
    assert printed.count("own drafts recorded") == 1 + 3 + 1 + 1
    assert printed.count("resumed from one-then-two.tuning/checkpoint-4") == 1
    assert (place / "drafts-renewed" / "model.safetensors").is_file()
    assert not list(place.glob("*.tuning"))


def test_the_command_itself_under_torchrun_names_what_is_wrong_and_leaves_nothing(place):
    before = sorted(place.rglob("*"))
    script = str(Path(sys.executable).with_name("sjd2"))
    done = subprocess.run([*TORCHRUN, script, *command("tuned", *FULL, "--batch-size", "3")], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "error: batch_size: expected batch_size x gradient_accumulation to be a multiple of the 2 processes, got 3 x 1" in done.stderr
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "processes", "expected"),
    [((8, 1), 1, (8, 1)), ((8, 1), 4, (2, 1)), ((2, 32), 8, (2, 4)), ((6, 2), 4, (3, 1)), ((2, 3), 6, (1, 1)), ((4, 6), 4, (2, 3))],
)
def test_a_batch_is_dealt_out(asked, processes, expected):
    assert share_of_batch(*asked, processes) == expected
    assert expected[0] * expected[1] * processes == asked[0] * asked[1]


def test_a_batch_that_cannot_be_dealt_out_is_named():
    with pytest.raises(ValueError, match="multiple of the 4 processes, got 3 x 2"):
        share_of_batch(3, 2, 4)


@pytest.mark.parametrize(("name", "kind"), [("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_another_engine_is_refused(place, monkeypatch, capsys, name, kind):
    monkeypatch.setenv(name, "true")
    assert launched.run(command("tuned", *FULL), None) == 1
    assert f"DDP or FSDP, the launcher asks for {kind}, which is not supported" in capsys.readouterr().err
    assert not list(place.glob("tuned*"))


class _Processes:
    """Two of them on GPUs, as one sees them from the second."""

    num_processes, process_index, device = 2, 1, torch.device("cuda:1")


def test_each_process_has_a_gpu_of_its_own():
    assert own_device(None, _Processes()) == own_device("cuda", _Processes()) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device: expected cpu or cuda for 2 processes, got cuda:0"):
        own_device("cuda:0", _Processes())


def test_drafts_are_dealt_out_and_put_together_in_order(adapter, monkeypatch):
    settings = DraftSettings(guidance=(1.0, 3.0))
    alone = DraftPool(adapter, ["a bag", "a boot"], settings, window=6)
    alone.renew(5)
    parts = []
    for index in range(2):
        processes = _Processes()
        processes.process_index = index
        pool = DraftPool(adapter, ["a bag", "a boot"], settings, window=6, processes=processes)
        with monkeypatch.context() as patch:
            patch.setattr(DraftPool, "_from_all", staticmethod(lambda recorded, shares: recorded))
            pool.renew(5)
        parts.append(pool.trajectories)
    assert [len(part) for part in parts] == [3, 2]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: parts)
    found = DraftPool._from_all(parts[1], 2)
    assert [one.seed for one in found] == [one.seed for one in alone.trajectories]
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(found, alone.trajectories, strict=True))
