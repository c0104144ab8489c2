"""What the README shows is what the commands do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sjd2 import PRESETS


@pytest.fixture
def root(request) -> Path:
    return Path(request.config.rootpath)


def test_python_blocks_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "coat.png").is_file()


def test_the_methods_table_agrees_with_the_presets(root):
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| \**(tokens|law|no)\b", (root / "README.md").read_text(), flags=re.MULTILINE)
    assert {name: "none" if exact == "no" else exact for name, exact in rows} == {name: preset.exact for name, preset in PRESETS.items()}


def test_tables_agree_with_the_stored_results(root):
    result = subprocess.run([sys.executable, str(root / "benchmarks" / "tables.py"), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/bench.md",
        "docs/evaluation.md",
        "docs/model_card.md",
        "docs/pictures.md",
        "docs/drop_in.md",
        "docs/exactness.md",
        "docs/kernels.md",
        "docs/kv_cache.md",
        "docs/models.md",
        "docs/sjd2.md",
        "docs/tuning.md",
    ],
)
def test_links_and_named_files_exist(root, page):
    text = (root / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"`((?:tests|benchmarks|docs|python|sjd2_kernels)/[\w./]+)`", text)
    for name in links:
        assert ((root / page).parent / name).exists(), name
    for name in files:
        assert (root / name).exists(), name
