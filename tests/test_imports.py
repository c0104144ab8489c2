"""The house stands as drawn: imports form no circle, the ops know nothing of the decoder, and no file grows too large to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sjd2
import sjd2_kernels

ROOT = Path(__file__).parents[1]
#: Lines of a file of source or tests.
LIMIT = 400


def _modules() -> dict[str, Path]:
    """Every module of both packages by its name; a package is its ``__init__``."""
    found = {}
    for package in (sjd2, sjd2_kernels):
        base = Path(package.__file__).parent
        for file in base.rglob("*.py"):
            parts = file.relative_to(base.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements outside functions, but for what type checkers alone look at."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _run_at_import(node.orelse)
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from _run_at_import(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _run_at_import(handler.body)


def imported(name: str, source: str, *, is_package: bool) -> set[str]:
    """Our own modules that a module imports when it is imported; not the packages that it lies in, which Python imports first in any case."""
    found = set()
    for node in _run_at_import(ast.parse(source).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            within = {f"{base}.{alias.name}" for alias in node.names}
            found |= within & set(MODULES)
            if within - set(MODULES):
                found.add(base)
    return found & set(MODULES)


def graph() -> dict[str, set[str]]:
    return {name: imported(name, file.read_text(), is_package=file.name == "__init__.py") for name, file in MODULES.items()}


def test_imports_form_no_circle():
    TopologicalSorter(graph()).prepare()


def test_imports_point_one_way():
    edges = graph()
    assert {
        (name, other) for name in edges for other in edges[name] if name.startswith("sjd2_kernels") and not other.startswith("sjd2_kernels")
    } == set()
    assert "sjd2_kernels" in edges["sjd2.decoding.loop"]


def test_a_circle_would_be_seen():
    edges = graph()
    assert edges["sjd2.decoding.loop"] >= {"sjd2.cache", "sjd2.decoding.state"}
    assert "sjd2.cli.generate" in edges["sjd2.cli.main"], "a submodule, by `from . import`"
    source = "if x:\n    try:\n        from ..decoding import decode\n    finally:\n        pass\ndef f():\n    import sjd2.pipeline\n"
    assert imported("sjd2.cache.ragged", source, is_package=False) == {"sjd2.decoding"}
    with pytest.raises(CycleError):
        TopologicalSorter(edges | {"sjd2.cache": {"sjd2.decoding.loop"}}).prepare()


def test_no_file_is_too_large_to_read():
    files = [file for folder in ("benchmarks", "csrc", "docs", "python", "sjd2_kernels", "tests") for file in (ROOT / folder).rglob("*")]
    long = {
        str(file.relative_to(ROOT)): lines
        for file in files
        if file.suffix in (".py", ".cpp", ".cu", ".h", ".cuh", ".md") and (lines := file.read_text().count("\n")) > LIMIT
    }
    assert long == {}
