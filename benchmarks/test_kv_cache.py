"""The workloads of ``kv_cache.py`` under pytest-benchmark: ``pytest benchmarks/test_kv_cache.py``."""

from __future__ import annotations

import pytest
import torch
from kv_cache import workloads

# Four layers keep a run short and are still more than a processor cache holds.
WORKLOADS = workloads(layers=4, rows=1, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_workload(benchmark, name):
    workload = WORKLOADS[name]()
    benchmark.extra_info["bytes"] = workload.bytes
    rounds = 3 if "scatter_" in name else 20

    def restored() -> None:
        workload.restore()

    benchmark.pedantic(workload.run, setup=restored, rounds=rounds, warmup_rounds=1)
    if workload.bytes:
        benchmark.extra_info["GB_per_s"] = round(workload.bytes / benchmark.stats["median"] / 1e9, 2)
