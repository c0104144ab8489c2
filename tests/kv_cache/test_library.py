"""The operators as PyTorch sees them: opcheck, ``torch.compile``, and which code ran."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

import sjd2_kernels
from sjd2_kernels import compiled
from sjd2_kernels.backends import use_backend
from sjd2_kernels.kv_cache import reference
from support import kv_cases as cases

from .test_errors import BACKENDS, NAMES, arguments

needs_native = pytest.mark.skipif(compiled.obstacle("cpu") is not None, reason=f"{compiled.obstacle('cpu')}")


@needs_native
def test_the_module_comes_with_the_installed_package():
    folder = Path(sjd2_kernels.__path__[0])
    assert Path(import_module("sjd2_kernels._C").__file__).parent == folder
    assert not (folder / "_C_not_built.txt").exists()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, backend, monkeypatch):
    """On the very arguments that the public function hands on."""
    seen = []

    class Recorder:
        def __getattr__(self, operator):
            return lambda *operands: seen.append((operator, operands))

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "sjd2", Recorder())
        getattr(sjd2_kernels, name)(**arguments(name), backend=backend)
    [(operator, operands)] = seen
    torch.library.opcheck(getattr(torch.ops.sjd2, operator).default, operands)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_graph_break(name, backend):
    op = getattr(sjd2_kernels, name)
    expected, got = arguments(name), arguments(name)
    torch._dynamo.reset()  # the cases share one function, and that may not be compiled ever again

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(call):
        op(**call, backend=backend)

    op(**expected, backend=backend)
    compiled(got)
    assert cases.same(list(got.values()), list(expected.values()))


@needs_native
def test_native_runs_unless_another_is_asked_for(monkeypatch):
    ran = []
    monkeypatch.setattr(reference, "append", None)
    call = arguments("kv_append")
    C = compiled.module  # noqa: N806
    append = C.cpu_append
    monkeypatch.setattr(C, "cpu_append", lambda *operands: ran.append("native") or append(*operands))
    sjd2_kernels.kv_append(**call)
    with use_backend("native"):
        sjd2_kernels.kv_append(**call)
    assert ran == ["native", "native"]
    sjd2_kernels.kv_append(**call, backend="torch")
    assert len(ran) == 2


def test_a_missing_module_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(compiled, "module", None)
    monkeypatch.setattr(compiled, "_missing", "compile failed: no compiler", raising=False)
    assert compiled.describe() == "not built: compile failed: no compiler"
    with pytest.raises(RuntimeError, match=r"kv_append cannot run on 'native' here: sjd2_kernels._C is not there: compile failed: no compiler"):
        sjd2_kernels.kv_append(**arguments("kv_append"), backend="native")
    call = arguments("kv_append")
    sjd2_kernels.kv_append(**call)
    assert call["key_cache"].sum() == 8
