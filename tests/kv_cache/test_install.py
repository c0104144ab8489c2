"""Building the package where there is no compiler, or where the user insists. Minutes, for every case is a build of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
NO_COMPILER = {"CC": "false", "CXX": "false", "CUDACXX": "", "SJD2_CUDA": "0"}


def build(request, tmp_path: Path, settings: dict[str, str]) -> tuple[int, str, list[str]]:
    """Exit status and output of building a wheel from a copy of the sources, and the wheel's files in ``sjd2_kernels``."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "weights", "_C_not_built.txt", "results")
    shutil.copytree(request.config.rootpath, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    files = [name for wheel in tmp_path.glob("*.whl") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("sjd2_kernels/_C")]
    return done.returncode, done.stdout, files


def test_without_a_compiler_the_package_is_installed_with_a_note_and_works_through_pytorch(request, tmp_path):
    status, output, files = build(request, tmp_path, NO_COMPILER)
    assert status == 0, output
    assert files == ["sjd2_kernels/_C_not_built.txt"]
    assert output.count("sjd2-kernels: installed without its native module (configure failed:") == 1
    target = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(target)
    code = (
        "import torch, sjd2_kernels; from sjd2_kernels.compiled import describe; print(sjd2_kernels.__path__[0]); print(describe());"
        "cache = torch.zeros(1, 1, 4, 1); sjd2_kernels.kv_append(cache, cache.clone(), cache + 1, cache + 1, torch.tensor([0])); print(cache.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(target)}, cwd=tmp_path, capture_output=True, text=True)
    where, native, total = done.stdout.splitlines()
    assert Path(where).is_relative_to(target), done.stderr
    assert native.startswith("not built: configure failed:")
    assert total == "tensor(4.)"


def test_asking_for_the_native_module_makes_its_absence_an_error(request, tmp_path):
    status, output, files = build(request, tmp_path, NO_COMPILER | {"SJD2_NATIVE": "1"})
    assert status != 0
    assert files == []
    assert "the native module was asked for and could not be built: configure failed:" in output


def test_the_module_can_be_left_out(request, tmp_path):
    status, output, files = build(request, tmp_path, {"SJD2_NATIVE": "0"})
    assert (status, files) == (0, ["sjd2_kernels/_C_not_built.txt"]), output


def test_a_setting_that_means_nothing_is_named(request, tmp_path):
    status, output, _ = build(request, tmp_path, {"SJD2_CUDA": "yes"})
    assert status != 0
    assert "SJD2_CUDA: expected auto, 0 or 1, got 'yes'" in output


def test_without_cuda_the_module_is_built_for_the_cpu(request, tmp_path):
    status, output, files = build(request, tmp_path, {"SJD2_CUDA": "0", "SJD2_NATIVE": "1"})
    assert status == 0, output
    assert len(files) == 1
    assert files[0].endswith(".so")
    assert "native module built, CPU only" in output
