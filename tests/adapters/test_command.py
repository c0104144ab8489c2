"""``sjd2 generate`` and ``sjd2 finetune`` with models whose adapter has to be told something."""

from __future__ import annotations

import json

import pytest
import torch

from sjd2 import TextToImagePipeline, load_adapter
from sjd2.cli import main as sjd2
from support.chameleon import CODES, PATCH, save_chameleon, vqgan_weights
from support.families import save_family
from support.generic import FIELDS, save_generic

LUMINA = ["--adapter", "lumina_mgpt", "--adapter-option", f"target_size={4 * PATCH}"]


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """Does not show which of the two it is, and has no decoder of pixels."""
    folder = tmp_path_factory.mktemp("chameleon") / "model"
    save_chameleon(folder)
    torch.save({"state_dict": vqgan_weights()}, folder.parent / "weights.ckpt")
    return folder


def generate(folder, *options):
    return sjd2(["generate", "a cat", "--model", str(folder), "--device", "cpu", *options])


def test_an_adapter_by_its_name_and_options(chameleon, tmp_path):
    options = [*LUMINA, "--adapter-option", f"vqgan={chameleon.parent / 'weights.ckpt'}", "--adapter-option", f"tokenizer={chameleon}"]
    assert generate(chameleon, *options, "-o", str(tmp_path / "cat.png"), "--json", str(tmp_path / "cat.json")) == 0
    (row,) = json.loads((tmp_path / "cat.json").read_text())
    pipeline = TextToImagePipeline.from_pretrained(
        chameleon, device="cpu", variant="lumina_mgpt", target_size=4 * PATCH, vqgan=chameleon.parent / "weights.ckpt"
    )
    assert row["tokens"] == pipeline("a cat").reports[0].tokens
    assert (tmp_path / "cat.png").is_file()


def test_fields_of_a_model_that_nobody_has_described(tmp_path):
    folder = save_generic(tmp_path / "model")
    options = [
        part for name, value in FIELDS.items() for part in ("--adapter-option", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    with pytest.warns(UserWarning, match="images: there will be none"):
        expected = TextToImagePipeline.from_pretrained(folder, adapter=FIELDS, device="cpu")("a cat", seed=4)
    assert generate(folder, *options, "--seed", "4", "--json", str(tmp_path / "cat.json")) == 0
    assert json.loads((tmp_path / "cat.json").read_text())[0]["tokens"] == expected.reports[0].tokens


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("anole", ["size=8"], "adapter: expected fields of variant, target_size, vqgan, tokenizer (for anole), got size"),
        ("anole", ["target_size=8"], "target_size: expected none, for anole has one size, got 8"),
        ("janus", ["grid=[2,2]"], "adapter: expected none for janus, got grid"),
        ("emu3", ["grids=[2,2]", "x=1"], "adapter: expected fields of grid (for emu3), got grids, x"),
        ("emu3", ["grid=4"], "adapter.grid: expected [rows, columns], whole numbers >= 1, got 4"),
        ("emu3", ["grid"], "--adapter-option: expected NAME=VALUE, got 'grid'"),
        ("emu3", ["grid=[2,2]", "grid=[3,3]"], "--adapter-option: expected every name once, got grid twice"),
        ("emu3", ["adapter=janus"], "adapter: expected one for model type 'emu3', got janus, which drives 'janus'"),
        ("janus", ["adapter=lumina_mgpt"], "adapter: expected one for model type 'janus', got lumina_mgpt, which drives 'chameleon'"),
        ("emu3", ["adapter=emu4"], "model: expected one that an adapter exists for (tiny_scenes, emu3"),
        ("generic", ["grids=[2,2]"], "adapter: expected fields of image_id_start, image_ids, grid,"),
    ],
)
def test_options_that_an_adapter_does_not_take(family, options, message, tmp_path, capsys):
    folder = save_family(family, tmp_path / "model")
    listed = [part for option in options for part in ("--adapter-option", option)]
    if family == "anole":
        listed += ["--adapter", "anole"]
    assert generate(folder, *listed, "--json", str(tmp_path / "out.json"), "-o", str(tmp_path / "cat.png")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cat.png").exists()


def test_tuning_a_model_that_has_to_be_described(chameleon, tmp_path, capsys):
    adapter = load_adapter(chameleon, device="cpu", adapter={"adapter": "lumina_mgpt", "target_size": 4 * PATCH})
    forced = adapter.layout(1).forced[0]
    tokens = torch.where(forced < 0, torch.arange(len(forced)) % CODES, forced).tolist()
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps({"prompt": "a cat", "tokens": tokens}) + "\n" for _ in range(4)))
    command = ["finetune", "--data", str(tmp_path / "tokens.jsonl"), "--model", str(chameleon), "--device", "cpu", "-o", str(tmp_path / "tuned")]
    command += ["--steps", "1", "--batch-size", "2", "--windows", "1", "--window", "6", "--held-out", "0"]
    assert sjd2([*command, *LUMINA]) == 0
    assert load_adapter(tmp_path / "tuned", device="cpu").grid == (4, 4)
    assert sjd2([*command, *LUMINA]) == 0  # is finished
    assert sjd2([*command, *LUMINA[:2]]) == 1
    assert "this one has adapter.target_size = None (was 8)" in capsys.readouterr().err


def test_own_drafts_of_a_model_that_has_to_be_described(chameleon, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    command = ["finetune", "--own-drafts", "--data", str(tmp_path / "prompts.txt"), "--model", str(chameleon), "--device", "cpu"]
    command += ["-o", str(tmp_path / "tuned"), "--steps", "1", "--batch-size", "2", "--windows", "1", "--window", "6", "--held-out", "0"]
    assert sjd2([*command, *LUMINA, "--first", "2", "--renewed", "2", "--pool", "4"]) == 0
    assert load_adapter(tmp_path / "tuned", device="cpu").name == "lumina_mgpt"
