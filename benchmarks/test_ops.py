"""The ops of the decoder under pytest-benchmark, by their definition, and by Triton and C++ where they can run: ``pytest benchmarks/test_ops.py``.

Shapes of one picture of a model with 16,384 image ids and a width of 4096, at a window of 32. For peers, floors and other sizes: ``fused_ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_inputs import NoisyInputs, Window

from sjd2_kernels import Purpose, Rule
from sjd2_kernels.compiled import op_backends

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


def able(backend: str, obstacles: dict[str, str | None], device: torch.device) -> str:
    """The back-end, if it can run on the device."""
    if obstacles[backend] is not None:
        pytest.skip(f"{backend} on {device}: {obstacles[backend]}")
    return backend


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request, device) -> str:
    """A back-end of ``verify``, ``sample`` and ``denoise``."""
    return able(request.param, op_backends(torch.empty(0, dtype=torch.bfloat16, device=device)), device)


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
