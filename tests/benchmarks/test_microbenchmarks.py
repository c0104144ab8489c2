"""``pytest benchmarks`` collects and runs; how fast, nobody asks here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sjd2_kernels.compiled import obstacle

pytest.importorskip("pytest_benchmark", reason="needs the bench extra")


def passed(root: Path, *selection: str, **environment: str) -> list[str]:
    """Names of the benchmarks that ran, once each, with small shapes."""
    # The command, not `python -m pytest`, which would put the source folder before the installed package.
    command = [str(Path(sys.executable).with_name("pytest")), "benchmarks", "--small", "--benchmark-disable", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *selection], cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return re.findall(r"::(\S+(?: \S+)*?) PASSED", done.stdout)


def test_every_microbenchmark_runs(request):
    names = passed(request.config.rootpath)
    backends = ["torch"] if obstacle("cpu") else ["torch", "cpp"]
    wanted = [f"test_{op}[cpu-{backend}-" for op in ("verify", "sample") for backend in backends]
    wanted += [f"test_denoise[cpu-{backend}]" for backend in backends]
    for start in wanted:
        assert any(name.startswith(start) for name in names), start
    assert sum(name.startswith("test_workload[") for name in names) >= 5


def test_those_of_triton_run_in_its_interpreter(request):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    # The interpreter has to be chosen before Triton is imported: a process of its own.
    names = passed(request.config.rootpath, "-k", "triton", TRITON_INTERPRET="1")
    for start in ("test_verify[cpu-triton-", "test_sample[cpu-triton-", "test_denoise[cpu-triton]"):
        assert any(name.startswith(start) for name in names), start
