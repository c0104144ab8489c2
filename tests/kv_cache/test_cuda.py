"""The CUDA ops against their definitions, on a machine with a GPU: the same random calls as on the CPU, and what only a GPU does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sjd2_kernels
from sjd2_kernels.compiled import obstacle
from sjd2_kernels.kv_cache import reference
from support import kv_cases as cases

from .test_against_definition import OPS
from .test_errors import arguments

_missing = "no GPU here" if not torch.cuda.is_available() else obstacle("cuda")
needs_gpu = pytest.mark.skipif(_missing is not None, reason=f"{_missing}")


def on_gpu(call: dict) -> dict:
    """The arguments with the same strides in GPU memory."""

    def move(value):
        if isinstance(value, torch.Tensor):
            storage = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).cuda().untyped_storage()
            return torch.empty(0, dtype=value.dtype, device="cuda").set_(storage, value.storage_offset(), value.shape, value.stride())
        return [move(item) for item in value] if isinstance(value, list) else value

    return {name: move(value) for name, value in call.items()}


@needs_gpu
@pytest.mark.parametrize("name", list(OPS))
@given(data=st.data())
def test_native_does_what_the_definition_says(name, data):
    call = data.draw(OPS[name])
    expected, got = call.clone(), on_gpu(call.clone())
    getattr(sjd2_kernels, name)(**expected, backend="torch")
    getattr(sjd2_kernels, name)(**got, backend="native")
    for argument, value in on_gpu(expected).items():
        assert cases.same(got[argument], value), argument


OVERFLOWS = {
    "kv_append": {"lengths": torch.tensor([7, 2])},
    "kv_rollback": {"new_lengths": torch.tensor([8, 0])},
    "kv_compact": {"rows": torch.tensor([2, 0])},
    "kv_compact_columns": {"columns": torch.tensor([[0, 3], [1, 0]])},
    "paged_kv_reserve": {"lengths": torch.tensor([11, 2])},
    "paged_kv_append": {"lengths": torch.tensor([7, 2])},
    "paged_kv_gather": {"lengths": torch.tensor([7, 2])},
    "paged_kv_rollback": {"new_lengths": torch.tensor([8, 3])},
    "paged_kv_compact": {"rows": torch.tensor([2, 1])},
    "paged_kv_compact_columns": {"columns": torch.tensor([[3, 0], [1, 0]])},
}


@needs_gpu
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", list(OVERFLOWS))
def test_a_row_that_does_not_fit_is_left_alone_and_marked(name, backend):
    """Both back-ends on the GPU agree, the other row is served, and the flag of the first is set."""
    op, call = getattr(sjd2_kernels, name), arguments(name) | OVERFLOWS[name]
    results = []
    for which in (backend, "torch"):
        moved = on_gpu({key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in call.items()})
        flags = torch.zeros(2, dtype=torch.bool, device="cuda")
        op(**moved, overflow=flags, backend=which)
        assert flags.tolist() == [True, False]
        results.append(list(moved.values()))
    assert cases.same(*results)
    with pytest.raises(ValueError, match="expected"):
        op(**on_gpu(call), check=True, backend=backend)


def _reference_marks(name: str) -> list[bool]:
    """The definition itself needs no GPU: called without the check, it leaves rows alone and marks them."""
    call, flags = arguments(name) | OVERFLOWS[name], torch.zeros(2, dtype=torch.bool)
    if name == "kv_append":
        reference.append(*call.values(), None, flags)
    elif name == "paged_kv_append":
        tables = call["lengths"], call["block_table"]
        reference.append(call["key_pages"], call["value_pages"], call["keys"], call["values"], *tables, flags)
    elif name == "paged_kv_reserve":
        reference.reserve(call["block_table"], call["free_list"], call["lengths"], call["new"], call["page_size"], flags)
    elif name == "paged_kv_compact":
        reference.compact_table(call["block_table"], call["free_list"], call["lengths"], call["rows"], flags)
    else:
        reference.compact_columns(call["caches"], call["lengths"], call["columns"], None, flags)
    return flags.tolist()


@pytest.mark.parametrize("name", ["kv_append", "paged_kv_append", "paged_kv_reserve", "paged_kv_compact", "kv_compact_columns"])
def test_the_definition_marks_rows_that_do_not_fit(name):
    assert _reference_marks(name) == [True, False]


@needs_gpu
def test_the_callers_stream_is_used():
    """On a stream that is held up, the append waits behind what was enqueued there before it."""
    call = on_gpu(arguments("kv_append"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        call["keys"].fill_(3)
        sjd2_kernels.kv_append(**call, backend="native")
    stream.synchronize()
    assert (call["key_cache"] == 3).sum() == 8


@needs_gpu
def test_a_cuda_graph_replays_with_the_lengths_of_its_time():
    call = on_gpu(arguments("kv_append"))
    call["lengths"].zero_()
    sjd2_kernels.kv_append(**call, backend="native")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sjd2_kernels.kv_append(**call, backend="native")
        sjd2_kernels.kv_rollback(call["lengths"], call["lengths"] + 2, window=2, backend="native")
    call["key_cache"].zero_()
    call["lengths"].zero_()
    for _ in range(3):
        graph.replay()
    assert call["lengths"].tolist() == [6, 6]
    assert (call["key_cache"][:, :, :6] == 1).all()
    assert (call["key_cache"][:, :, 6:] == 0).all()
