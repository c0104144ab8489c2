"""The workloads of ``kv_cache.py`` under pytest-benchmark: ``pytest benchmarks/test_kv_cache.py``."""

from __future__ import annotations

import pytest
import torch
from kv_cache import workloads

from sjd2_kernels.compiled import obstacle

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(workloads(layers=1, rows=1, dtype=torch.bfloat16)))
def test_workload(benchmark, small, name, device):
    missing = obstacle(device) if "native" in name or "paged" in name else None
    if missing is not None:
        pytest.skip(f"native on {device}: {missing}")
    # Four layers keep a run short and are still more than a processor cache holds.
    workload = workloads(layers=1 if small else 4, rows=1, dtype=torch.bfloat16, device=device)[name]()
    benchmark.extra_info["bytes"] = workload.bytes

    def restored() -> None:
        workload.restore()

    def run() -> None:
        workload.run()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, setup=restored, rounds=3 if "scatter_" in name else 20, warmup_rounds=1)
    if workload.bytes and benchmark.stats is not None:  # there are none with --benchmark-disable
        benchmark.extra_info["GB_per_s"] = round(workload.bytes / benchmark.stats["median"] / 1e9, 2)
