"""What docs/tuning.md prints is what runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sjd2 import load_adapter
from sjd2.cli import main as sjd2
from sjd2.cli.main import _parser


def commands(text: str) -> list[list[str]]:
    joined = re.sub(r"\\\n *", "", text)
    return [shlex.split(line)[1:] for line in re.findall(r"^    (sjd2 .*)$", joined, flags=re.MULTILINE)]


def test_commands_and_python_run_as_printed(request, tmp_path, monkeypatch, capsys):
    text = (Path(request.config.rootpath) / "docs" / "tuning.md").read_text()
    monkeypatch.chdir(tmp_path)
    first = commands(text.split("## Try it")[1].split("\n## ")[0])
    assert [command[0] for command in first] == ["generate", "finetune", "generate", "finetune"]
    (tmp_path / "prompts.txt").write_text("a red coat on a yellow background\na bag\n")
    for command in first:
        assert sjd2(command) == 0
    assert "warning" not in capsys.readouterr().err
    assert (tmp_path / "coat.png").is_file()
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "tuning.md", "exec"), {})
    assert load_adapter("tuned-in-python").denoising.levels.steps == 6
    assert load_adapter("tuned-by-hand").denoising.levels.steps == 8


def test_every_command_parses_and_every_option_named_is_there(request):
    text = (Path(request.config.rootpath) / "docs" / "tuning.md").read_text()
    for command in commands(text):
        _parser().parse_args(command)
    options = set(re.findall(r"`(--[a-z0-9-]+)", text.split("## Options that matter")[1].split("\n## ")[0]))
    assert options
    help_text = _parser()._subparsers._group_actions[0].choices["finetune"].format_help()
    assert all(option in help_text for option in options)
