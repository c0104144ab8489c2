"""Choosing an implementation by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sjd2_kernels.backends import current_backend, resolve_backend, set_backend, use_backend

CANDIDATES = {"triton": "no GPU", "native": None, "torch": None}


def test_auto_takes_the_best_that_can_run():
    assert resolve_backend("op", None, CANDIDATES) == "native"
    assert resolve_backend("op", "auto", {"torch": None}) == "torch"


def test_a_name_holds_for_the_call_or_for_every_op_that_has_it():
    assert resolve_backend("op", "torch", CANDIDATES) == "torch"
    with use_backend("torch"):
        assert resolve_backend("op", None, CANDIDATES) == "torch"
        assert resolve_backend("op", "native", CANDIDATES) == "native"
        with use_backend("native"):
            assert resolve_backend("op", None, {"torch": None}) == "torch", "an op without that back-end takes its own best"
        assert current_backend() == "torch"
    assert current_backend() == "auto"


def test_errors_say_what_there_is_and_what_is_missing():
    with pytest.raises(ValueError, match="backend: expected one of auto, torch, triton, cpp, native, got 'cuda'"):
        set_backend("cuda")
    with pytest.raises(ValueError, match="backend: op has torch, got 'native'"):
        resolve_backend("op", "native", {"torch": None})
    with pytest.raises(RuntimeError, match="backend: op cannot run on 'triton' here: no GPU"):
        resolve_backend("op", "triton", CANDIDATES)
    with use_backend("triton"), pytest.raises(RuntimeError, match="no GPU"):
        resolve_backend("op", None, CANDIDATES)
    assert current_backend() == "auto"


def test_the_environment_variable_is_read_and_checked():
    def run(name: str) -> subprocess.CompletedProcess:
        code = "from sjd2_kernels.backends import current_backend; print(current_backend())"
        return subprocess.run([sys.executable, "-c", code], env=os.environ | {"SJD2_BACKEND": name}, capture_output=True, text=True)

    assert run("torch").stdout == "torch\n"
    assert "SJD2_BACKEND: expected one of" in run("fast").stderr
