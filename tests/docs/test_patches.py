"""The patches of the guide to update rules apply, and the tests that it names pass on the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sjd2
import sjd2_kernels
from support.pages import blocks, shell_lines

ROOT = Path(__file__).parents[2]
PAGE = "docs/adding_a_rule.md"


@pytest.fixture
def copy(tmp_path) -> Path:
    """The installed packages and the tests, as they lie in the repository."""
    for package, place in ((sjd2_kernels, "sjd2_kernels"), (sjd2, "python/sjd2")):
        shutil.copytree(Path(package.__file__).parent, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "benchmarks").mkdir()
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def commands() -> list[list[str]]:
    """What the page tells to run, but for the installation."""
    return [words for block in blocks(ROOT, PAGE) if block.kind == "sh" for words in shell_lines(block.text) if words[0] != "pip"]


@pytest.mark.parametrize(
    ("number", "passed"),
    [
        (0, "test_every_lossless_preset_has_the_law_of_ar[window<length-near-sjd] PASSED"),
        pytest.param(1, "test_tokens_are_those_of_the_definition[2500-near] PASSED", marks=pytest.mark.full),
        pytest.param(2, "near] PASSED", marks=pytest.mark.full),
    ],
    ids=["law", "Triton", "C++"],
)
def test_the_rule_of_the_guide_passes_the_tests_that_find_it(copy, number, passed):
    if shutil.which("git") is None:
        pytest.skip("git is not installed: it applies the patches")
    pytest.importorskip("triton", reason="Triton is not installed")
    patch = "".join(block.text for block in blocks(ROOT, PAGE) if block.kind == "diff")
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    applied = subprocess.run(["git", "apply", "-"], cwd=copy, input=patch, env=environment, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (copy, copy / "python"))), "TRITON_INTERPRET": str(int(number == 1)), "SJD2_CUDA": "0"}
    if number == 2:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = subprocess.run(build, cwd=copy, env=environment | {"SJD2_NATIVE": "1"}, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[-3000:]
    words = [sys.executable, "-m", *commands()[number], "-v", "-m", "not full"]
    result = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert passed in result.stdout


def test_every_command_of_the_guide_is_one_of_them():
    assert len(commands()) == 3
