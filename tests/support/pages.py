"""Code blocks of README and docs: found, classified, and run as a reader would, down the page, in one folder and one set of names."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from sjd2.cli import main as sjd2
from sjd2.cli.main import _parser

#: Stands above a block that cannot run in the tests, and says why.
MARK = re.compile(r"<!-- not run: (.+) -->")
_COMMANDS = ("make", "pip", "pytest", "python", "sjd2")
#: What an indented block with one of these would be: code that nobody runs.
_CODE = re.compile(r"^(import|from|def|class|with|for|>>>|\$) ")


@dataclass(frozen=True)
class Block:
    """``kind``: python, sh, diff, json, or text (formulas, trees, messages); ``reason``: why it is not run, ``None`` if it is."""

    page: str
    line: int
    kind: str
    text: str
    reason: str | None = None


def pages(root: Path) -> list[str]:
    """Every page that a reader is shown; the reference under ``docs/api`` is made of docstrings, whose examples ``tests/test_package.py`` runs."""
    return ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (root / "docs").glob("*.md"))]


def blocks(root: Path, page: str) -> list[Block]:
    """The page's blocks, fenced and indented."""
    lines = (root / page).read_text().splitlines()
    found: list[Block] = []
    reason, number = None, 0
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if fence := re.match(r"```(\w*)$", line):
            end = lines.index("```", number)
            found.append(Block(page, start, fence[1] or "text", "\n".join(lines[number:end]) + "\n", reason))
            number, reason = end + 1, None
        elif line.startswith("    ") and not lines[start - 2].strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(one[4:] for one in lines[start - 1 : number]).rstrip() + "\n"
            kind = "sh" if text.split(None, 1)[0] in _COMMANDS else "text"
            assert kind == "sh" or not _CODE.search(text), f"{page}:{start}: fence this block and name its language"
            found.append(Block(page, start, kind, text, reason))
            reason = None
        elif mark := MARK.fullmatch(line):
            reason = mark[1]
        elif line.strip():
            assert reason is None, f"{page}:{start}: a block was to follow `not run`"
    return found


def shell_lines(text: str) -> list[list[str]]:
    """Words of every command, without comments and settings of variables before it."""
    commands = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words[next(i for i, word in enumerate(words) if "=" not in word) :] for words in commands if words]


def _make(root: Path, words: list[str]) -> None:
    result = subprocess.run(["make", "--dry-run", *words], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def _pip(root: Path, words: list[str]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    command, target = words
    name, extras = re.fullmatch(r"(.+?)(?:\[(.+)\])?", target).groups()
    assert (command, name) == ("install", "."), words
    assert set((extras or "").split(",")) - {""} <= set(project["optional-dependencies"]), words


def _pytest(root: Path, words: list[str]) -> None:
    paths = [word for before, word in itertools.pairwise(["", *words]) if not word.startswith("-") and before != "-k"]
    assert paths, words
    assert all((root / path).exists() for path in paths), words


def _python(root: Path, words: list[str]) -> None:
    """Minutes to hours in earnest: the program's own help has to know every option."""
    module = words[0] == "-m"
    name, options = (words[1], words[2:]) if module else (str(root / words[0]), words[1:])
    out = io.StringIO()
    with mock.patch.object(sys, "argv", [name, "--help"]), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        (runpy.run_module if module else runpy.run_path)(name, run_name="__main__")
    assert "usage:" in out.getvalue(), words
    for option in options:
        assert not option.startswith("-") or option in out.getvalue(), (words, option)


def _sjd2(root: Path, words: list[str]) -> None:
    try:
        code = sjd2(words)
    except SystemExit as end:  # --help, or bad usage
        code = end.code
    assert code == 0, words


_RUN: dict[str, Callable[[Path, list[str]], None]] = {"make": _make, "pip": _pip, "pytest": _pytest, "python": _python, "sjd2": _sjd2}


def check_unrun(block: Block) -> None:
    """As much of a block that is not run as can be looked at: its syntax, and the options of ``sjd2``."""
    if block.kind == "python":
        compile(block.text, block.page, "exec")
    elif block.kind == "sh":
        for command, *words in shell_lines(block.text):
            if command == "sjd2":
                _parser().parse_args(words)


def run_page(root: Path, page: str, replace: dict[str, str] | None = None) -> dict[str, object]:
    """Run a page's blocks in the current folder; the names that its Python leaves behind.

    ``sjd2`` commands and Python run. ``make``, ``pip``, ``pytest`` and other programs take too long, or change the machine: their targets, extras,
    files and options are checked.
    """
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(root, page):
        text = block.text
        for old, new in (replace or {}).items():
            text = text.replace(old, new)
        if block.reason is not None:
            check_unrun(block)
        elif block.kind == "python":
            file = Path(f"{Path(page).stem}_{block.line}.py").absolute()  # Triton reads the source of what it compiles
            file.write_text(text)
            exec(compile(text, str(file), "exec"), names)
        elif block.kind == "sh":
            for command, *words in shell_lines(text):
                _RUN[command](root, words)
    return names
