"""What is tested is what users install, and what it says about itself is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import sjd2
import sjd2_kernels

MODULES = [
    module.name
    for package in (sjd2_kernels, sjd2)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


def test_the_source_folder_does_not_shadow_the_installed_package(request):
    """A plain install is meant; an editable one is for development and points here on purpose."""
    from importlib.metadata import distribution

    direct = distribution("sjd2-kernels").read_text("direct_url.json") or ""
    if '"editable": true' in direct:
        pytest.skip("this is an editable install")
    root = Path(request.config.rootpath)
    for package in (sjd2, sjd2_kernels):
        folder = Path(package.__path__[0])
        assert folder not in (root / "python" / "sjd2", root / "sjd2_kernels")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_exports_what_it_names(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public) is not None


def test_the_ops_know_nothing_of_the_decoder():
    for path in Path(sjd2_kernels.__path__[0]).rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), flags=re.MULTILINE)
        assert not {"sjd2", "transformers"} & {name.split(".")[0] for name in imported}, path
