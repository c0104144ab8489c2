"""``pytest benchmarks`` collects and runs; how fast, nobody asks here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OPS = ("test_verify[cpu-{backend}-", "test_sample[cpu-{backend}-", "test_denoise[cpu-{backend}]")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_every_microbenchmark_runs_once_with_small_shapes(request, backend):
    pytest.importorskip("pytest_benchmark", reason="needs the bench extra")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    # Triton's interpreter has to be chosen before Triton is imported.
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if backend == "triton" else {})
    # The command, not `python -m pytest`, which would put the source folder before the installed package.
    pytest_command = str(Path(sys.executable).with_name("pytest"))
    command = [pytest_command, "benchmarks", "--small", "--benchmark-disable", "-v", "-p", "no:cacheprovider"]
    command += [] if backend == "torch" else ["-k", "triton"]
    root = request.config.rootpath
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    passed = re.findall(r"::(\S+(?: \S+)*?) PASSED", done.stdout)
    for op in OPS:
        assert any(name.startswith(op.format(backend=backend)) for name in passed), op
    if backend == "torch":
        assert sum(name.startswith("test_workload[") for name in passed) >= 5
