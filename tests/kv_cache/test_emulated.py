"""The CUDA sources against their definitions without a GPU: compiled as C++, they run thread by thread on the CPU (csrc/tests/emulated).

``make test-native`` builds a module whose ``cuda_…`` functions are those, and says where it is. Threads and blocks run in an order of the test's
choice; what comes out must not depend on it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sjd2_kernels
from sjd2_kernels.kv_cache import library, native
from support import kv_cases as cases

from .test_against_definition import OPS
from .test_cuda import OVERFLOWS
from .test_errors import arguments

FOLDER = os.environ.get("SJD2_EMULATED_CUDA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="SJD2_EMULATED_CUDA names no folder with the module; `make test-native` does")

#: Ascending, descending, and shuffled anew between any two barriers.
ORDERS = st.tuples(st.integers(0, 2), st.integers(0, 2**32 - 1))


@pytest.fixture(scope="module")
def set_order() -> Iterator[ctypes._CFuncPtr]:
    """Native calls go to the emulated CUDA functions, and nobody looks at values before a call, as on a GPU."""
    (path,) = Path(FOLDER).resolve().glob("_C*.so")
    spec = spec_from_file_location("emulated._C", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(name: str, values: tuple, on: torch.Tensor, overflow: torch.Tensor | None, *, threads: bool = True) -> bool:
        getattr(module, f"cuda_{name}")(*values, native._flags(overflow), (0, 0))
        return True

    def scratch(on: torch.Tensor, maps: int, size: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        tensor = torch.full((module.workspace_size(maps, size, on.shape[0]),), -99)
        return tensor, (tensor.data_ptr(),)

    function = ctypes.CDLL(str(path)).sjd2_emulated_order
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_uint64), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_run", run)
        patch.setattr(native, "_scratch", scratch)
        patch.setattr(library, "_on_gpu", lambda _: True)
        yield function


def memory(call: dict) -> list[torch.Tensor]:
    """All bytes behind the tensors of a call, also those between the elements that they show."""
    flat = [item for value in call.values() for item in (value if isinstance(value, list) else [value])]
    return [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()) for tensor in flat if isinstance(tensor, torch.Tensor)]


def compare(name: str, call: cases.Call) -> list[bool]:
    """Both back-ends write the same, everywhere, and mark the same rows, which are returned."""
    rows = len(call.arguments["lengths"])
    expected, got = (copy | {"overflow": torch.zeros(rows, dtype=torch.bool)} for copy in (call.clone(), call.clone()))
    getattr(sjd2_kernels, name)(**expected, backend="torch")
    getattr(sjd2_kernels, name)(**got, backend="native")
    for argument in expected:
        assert cases.same(got[argument], expected[argument]), argument
    for index, (wanted, have) in enumerate(zip(memory(expected), memory(got), strict=True)):
        assert torch.equal(have, wanted), f"beside tensor {index}"
    return got["overflow"].tolist()


@pytest.mark.parametrize("name", list(OPS))
@given(data=st.data(), order=ORDERS)
def test_cuda_does_what_the_definition_says(set_order, name, data, order):
    set_order(*order)
    marked = compare(name, data.draw(OPS[name]))
    assert not any(marked)


#: What may stand in any vector of numbers.
WILD = st.integers(-3, 20) | st.sampled_from([2**63 - 1, 2**62, -(2**63), 2**31])


@pytest.mark.parametrize("name", list(OPS))
@given(data=st.data(), order=ORDERS)
def test_numbers_that_mean_nothing(set_order, name, data, order):
    """Rows that do not fit are left alone and marked as the definition does it; the others are served."""
    set_order(*order)
    call = data.draw(OPS[name])
    for argument in ("lengths", "new_lengths", "rows", "columns"):
        if (numbers := call.arguments.get(argument)) is None or numbers.numel() == 0:
            continue
        for place in data.draw(st.lists(st.integers(0, numbers.numel() - 1), max_size=3), label=argument):
            numbers[tuple(int(i) for i in torch.unravel_index(torch.tensor(place), numbers.shape))] = data.draw(WILD)
    if name in ("paged_kv_append", "paged_kv_gather", "paged_kv_compact_columns") and (table := call.arguments["block_table"]).numel():
        for place in data.draw(st.lists(st.integers(0, table.numel() - 1), max_size=2), label="block_table"):
            page = data.draw(st.sampled_from([-1, -7, 50, 2**62]))  # none, or one that no pool has
            table[divmod(place, table.shape[1])] = page
    compare(name, call)


def test_lengths_that_no_cache_bounds(set_order):
    """Where no cache is shown, any length will do."""
    set_order(0, 0)
    most = torch.tensor([2**63 - 1, 5])
    assert compare("kv_rollback", cases.Call({"lengths": most, "new_lengths": most.clone(), "window": 0})) == [False, False]


@pytest.mark.parametrize("name", list(OVERFLOWS))
def test_a_row_that_does_not_fit_is_left_alone_and_marked(set_order, name):
    for order in range(3):
        set_order(order, 1)
        assert compare(name, cases.Call(arguments(name) | OVERFLOWS[name])) == [True, False]
