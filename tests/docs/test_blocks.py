"""Every code block of README and docs runs as printed, and those that cannot are few, known, and say why."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import sjd2
from sjd2 import load_adapter
from sjd2.cli.main import _parser
from support.chameleon import save_chameleon
from support.emu3 import save_emu3
from support.pages import blocks, pages, run_page

ROOT = Path(__file__).parents[2]

#: How many blocks of a page cannot run here. Their reasons stand in the page's source, above them.
NOT_RUN = {"docs/batch.md": 2, "docs/evaluation.md": 5, "docs/models.md": 9, "docs/tuning.md": 4}
REASONS = {"needs published weights", "needs a model of yours", "needs a GPU", "needs a cluster", "needs the extra eval", "needs GenEval's evaluator"}

#: Pages whose kernels have to be interpreted, which is chosen before Triton is imported.
IN_A_PROCESS_OF_ITS_OWN = "docs/adding_a_kernel.md"
#: Its patches are applied and tested by ``test_patches.py``.
PATCHES = "docs/adding_a_rule.md"


@dataclass(frozen=True)
class Stage:
    """What a page finds in the folder, what is made smaller in it, and what has to be true when it has run."""

    before: Callable[[Path], None] = lambda folder: None
    replace: dict[str, str] = field(default_factory=dict)
    after: Callable[[Path, dict, str, str], None] = lambda folder, names, out, err: None


def _models(folder: Path) -> None:
    """Models of the named classes, with images of 4 × 4 tokens."""
    for owner in ("BAAI", "leloy"):
        (folder / owner).mkdir()
    save_emu3(folder / "BAAI" / "Emu3-Gen-hf")
    save_chameleon(folder / "leloy" / "Anole-7b-v0.1-hf")


def _prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a red coat on a yellow background\na bag\n")


def _after_drop_in(folder: Path, names: dict, out: str, err: str) -> None:
    assert names["pixels"].shape == (1, 3, 32, 32)
    assert names["image"].shape == (1, 13 + 16)  # begin-of-text, ten letters, end of turn, begin-of-image
    printed = re.findall(r"256 tokens in (\d+) forwards", out)
    assert len(printed) == 2
    assert all(int(forwards) < 256 for forwards in printed)


def _after_tuning(folder: Path, names: dict, out: str, err: str) -> None:
    # A bare TrainingArguments pins memory, GPU or not; `sjd2 finetune` does not.
    assert [line for line in err.splitlines() if "warning" in line and "pin_memory" not in line] == []
    assert (folder / "coat.png").is_file()
    assert load_adapter("tuned-in-python").denoising.levels.steps == 6
    assert load_adapter("tuned-by-hand").denoising.levels.steps == 8


def _after_readme(folder: Path, names: dict, out: str, err: str) -> None:
    assert (folder / "coat.png").is_file()
    assert names["ids"].shape[1] == names["inputs"].input_ids.shape[1] + 256
    assert 0 < int(re.search(r"256 tokens in (\d+) forwards", out)[1]) < 256


STAGES = {
    "README.md": Stage(after=_after_readme),
    "docs/batch.md": Stage(_prompts),
    "docs/bench.md": Stage(_prompts, {"--guidance-scale 1 3 --temperature 0.7 1": "--guidance-scale 1 --temperature 0.7 1"}),
    "docs/drop_in.md": Stage(_models, {"518_400": "1_280"}, _after_drop_in),
    "docs/tuning.md": Stage(_prompts, {}, _after_tuning),
}


def test_the_folder_of_tests_is_the_repositorys(request):
    assert Path(request.config.rootpath) == ROOT


@pytest.mark.parametrize("page", [page for page in pages(ROOT) if page != IN_A_PROCESS_OF_ITS_OWN])
def test_blocks_run_as_printed(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stage = STAGES.get(page, Stage())
    stage.before(tmp_path)
    names = run_page(ROOT, page, stage.replace)
    stage.after(tmp_path, names, *capsys.readouterr())


@pytest.mark.parametrize(
    ("interpret", "printed"),
    [("1", r"compared: torch triton\n"), ("0", r"compared: torch\ncompiled for 90 with \d+ .*\ncompiled for gfx942 with \d+ .*\n")],
    ids=["interpreted", "compiled"],
)
def test_the_kernel_of_the_guide_is_run_and_compiled(tmp_path, interpret, printed):
    pytest.importorskip("triton", reason="Triton is not installed")
    if interpret == "0" and torch.cuda.is_available():
        printed = printed.replace("torch", "torch triton")
    code = f"from pathlib import Path; from support.pages import run_page; run_page(Path({str(ROOT)!r}), {IN_A_PROCESS_OF_ITS_OWN!r})"
    paths = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(printed, result.stdout)


def test_no_block_is_left_out_unnoticed():
    left_out = {page: [block.reason for block in blocks(ROOT, page) if block.reason is not None] for page in pages(ROOT)}
    assert {page: len(reasons) for page, reasons in left_out.items() if reasons} == NOT_RUN
    assert {reason for reasons in left_out.values() for reason in reasons} <= REASONS


def test_every_block_is_of_a_kind_that_is_run():
    kinds = {(page, block.kind) for page in pages(ROOT) for block in blocks(ROOT, page)}
    assert {kind for _, kind in kinds} <= {"python", "sh", "diff", "text"}
    assert {page for page, kind in kinds if kind == "diff"} == {PATCHES}


def test_the_table_of_arguments_names_those_of_generate():
    text = (ROOT / "docs" / "drop_in.md").read_text()
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text.split("## Arguments")[1], flags=re.MULTILINE)))
    own = set(inspect.signature(sjd2.generate).parameters) - {
        "model", "input_ids", "logits_processor", "stopping_criteria", "generation_config", "model_kwargs",
    }  # fmt: skip
    assert set(named) == own


def test_options_and_defaults_that_tuning_explains_are_those_of_the_command():
    finetune = _parser()._subparsers._group_actions[0].choices["finetune"]
    expand = finetune._get_formatter()._expand_help
    helps = {option: expand(action) for action in finetune._actions for option in action.option_strings}
    text = (ROOT / "docs" / "tuning.md").read_text()
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", text.split("## Options that matter")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert len(rows) > 10
    number = re.compile(r"\d+(?:\.\d+)?(?:e-\d+)?")
    for names, default in rows:
        told = [helps[option].split("default", 1)[-1] for option in re.findall(r"--[a-z0-9-]+", names)]
        assert set(number.findall(default)) <= set(number.findall(" ".join(told))), names
