"""CUDA graphs: their memory, and what a recording that fails leaves behind. Without a GPU PyTorch's calls are stand-ins."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count

import pytest
import torch

from sjd2.recording import record_cuda_graph, replaying
from support.tape import Tape


class Graph:
    """Of ``torch.cuda.CUDAGraph``, what a recorder uses."""

    def replay(self):
        return self


@pytest.fixture
def calls(monkeypatch):
    """What PyTorch was asked for, in order; ``fail`` at an end to have it fail there."""
    asked: list = []

    @contextmanager
    def graph(one, pool):
        asked.append(f"pool {pool}")
        yield
        if "fail" in asked:
            raise RuntimeError("operation failed due to a previous error during capture")

    def end(device, pool):
        asked.append(f"end {pool}")
        if "fail" not in asked:
            raise RuntimeError("not currently recording to mempool_id")

    pools = count()
    stand_ins = {
        "graph_pool_handle": lambda: next(pools),
        "CUDAGraph": Graph,
        "graph": graph,
        "current_stream": lambda: "caller's",
        "set_stream": asked.append,
        "current_device": lambda: 0,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: asked.append(f"release {pool}"), raising=False)
    return asked


def test_a_pool_that_no_graph_uses_any_more_is_not_taken_up_again(calls):
    record = record_cuda_graph()
    replays = [record(lambda: None), record(lambda: None)]
    del replays[0]
    replays.append(record(lambda: None))
    replays.clear()
    replays.append(record(lambda: None))
    assert calls == ["pool 0", "pool 0", "pool 0", "pool 1"]


def test_a_recording_that_fails_at_its_end_leaves_the_callers_stream_and_no_pool(calls):
    record = record_cuda_graph()
    calls.append("fail")
    with pytest.raises(RuntimeError, match="previous error"):
        record(lambda: None)
    assert calls == ["fail", "pool 0", "caller's", "end 0", "release 0"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_fails_leaves_the_pool_of_the_other_graphs(calls, error):
    def fails():
        raise error

    record = record_cuda_graph()
    kept = record(lambda: None)
    with pytest.raises(error):
        record(fails)
    assert calls == ["pool 0", "pool 0", "caller's", "end 0"]
    record(lambda: None)
    assert calls[-1] == "pool 0"
    assert kept


def test_what_is_replayed_was_done_before():
    done = torch.zeros(())

    def work():
        done.add_(1)

    replaying(work, None)()
    assert done == 2
    tape = Tape()
    replaying(work, tape)()
    assert (done, tape.replays) == (4, 1)

    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    replaying(work, refuse)()
    assert done == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_records_again_after_all_graphs_are_gone():
    matrix = torch.eye(64, device="cuda")
    record = record_cuda_graph()
    for times in range(1, 4):
        total = torch.zeros_like(matrix)
        replay = record(lambda total=total: total.add_(matrix @ matrix))
        for _ in range(times):
            replay()
        assert torch.equal(total, times * matrix)
        del replay


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_memory_back_after_a_recording_that_failed():
    held = torch.zeros((), device="cuda")
    with pytest.raises(RuntimeError):
        record_cuda_graph()(lambda: held.item())
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    torch.empty(2**28, dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    replay = record_cuda_graph()(lambda: held.add_(1))
    replay()
    assert held == 1
