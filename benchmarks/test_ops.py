"""The ops of the decoder under pytest-benchmark, by their definition and by Triton where it can run: ``pytest benchmarks/test_ops.py``.

Shapes of one picture of a model with 16,384 image ids and a width of 4096, at a window of 32. For peers, floors and other sizes: ``fused_ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fused_ops import NoisyInputs, Window

from sjd2_kernels import Purpose, Rule
from sjd2_kernels.fused import triton_obstacle

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BACKENDS = ("torch", "triton")


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=BACKENDS)
def backend(request, device) -> str:
    """A back-end that can run on the device."""
    obstacle = triton_obstacle(torch.empty(0, device=device)) if request.param == "triton" else None
    if obstacle is not None:
        pytest.skip(f"triton on {device}: {obstacle}")
    return request.param


@pytest.fixture
def window(device, small) -> Window:
    return Window(1, 4, 50, device) if small else Window(1, 32, 16_384, device)


def timed(benchmark, call: Callable[[], object], device: torch.device, floor_bytes: int) -> None:
    """Time a call to its end, and write down what it would move at least."""

    def to_the_end() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.extra_info["floor_bytes"] = floor_bytes
    benchmark.pedantic(to_the_end, rounds=100 if device.type == "cuda" else 5, warmup_rounds=3)


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.value)
def test_verify(benchmark, window, device, backend, rule):
    timed(benchmark, lambda: window.verify(rule, backend), device, window.floor)


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.GUMBEL], ids=lambda purpose: purpose.name.lower())
def test_sample(benchmark, window, device, backend, purpose):
    timed(benchmark, lambda: window.sample(purpose, backend), device, window.floor)


def test_denoise(benchmark, small, device, backend):
    inputs = NoisyInputs(1, 4, 40, device, vocab=50) if small else NoisyInputs(1, 32, 4096, device)
    timed(benchmark, lambda: inputs.denoise(backend), device, inputs.floor)
