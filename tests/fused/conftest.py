"""The Triton kernels run natively on a GPU and, with ``TRITON_INTERPRET=1`` set before Triton is imported, on the CPU.

``make test-triton`` (part of ``make test``) runs this folder in the interpreter, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels.fused import triton_obstacle
from support.interpreted import Filled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    obstacle = triton_obstacle(torch.empty(0, device=DEVICE))
    for item in items:
        if obstacle is not None and item.path.parent.name == "fused":
            item.add_marker(pytest.mark.skip(reason=f"{obstacle}; `make test-triton` runs these in Triton's interpreter"))


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return DEVICE


class _Recorded:
    """A kernel that writes down its launches."""

    def __init__(self, kernel, launches: list[tuple[str, tuple, dict]]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            self.launches.append((self.kernel.__name__, grid, named))
            return self.kernel[grid](*arguments, **named)

        return launch


@pytest.fixture
def launches(monkeypatch) -> list[tuple[str, tuple, dict]]:
    """(kernel, grid, arguments) of every launch from here on."""
    from sjd2_kernels.fused import attention, denoise, launch

    seen: list[tuple[str, tuple, dict]] = []
    kernels = {launch: ("row_statistics_kernel", "split_sweep_kernel", "split_merge_kernel", "draw_kernel"), denoise: ("denoise_kernel",)}
    kernels[attention] = ("window_attention_kernel", "merge_splits_kernel")
    for module, names in kernels.items():
        for name in names:
            monkeypatch.setattr(module, name, _Recorded(getattr(module, name), seen))
    return seen


@pytest.fixture
def small_splits(monkeypatch) -> None:
    """Rows are split from 257 ids on, and leave 256 candidates, so that small tests take the way of large vocabularies."""
    from sjd2_kernels.fused import plans

    for name, value in {"SINGLE": 256, "SPLIT": 256, "CANDIDATES": (256, 256), "BLOCK": 128, "BLOCKS_PER_PROGRAM": 2}.items():
        monkeypatch.setattr(plans, name, value)


@pytest.fixture
def sweeps(monkeypatch) -> list[bool]:
    """One entry per search by sweeps; stays empty on a GPU, where a compiled kernel cannot be watched."""
    from sjd2_kernels.fused import INTERPRETED, statistics

    seen: list[bool] = []
    if INTERPRETED:
        search = statistics.borders_by_sweeps

        def watched(*arguments, **named):
            seen.append(True)
            return search(*arguments, **named)

        monkeypatch.setattr(statistics, "borders_by_sweeps", watched)
    return seen


@pytest.fixture(autouse=True)
def poisoned(monkeypatch) -> None:
    """``torch.empty`` hands out NaN and absurd integers: what a kernel does not write, or reads before it is written, shows."""
    from sjd2_kernels.fused import triton_obstacle

    if triton_obstacle(torch.empty(0, device=DEVICE)) is not None:
        return
    from sjd2_kernels.fused import attention, denoise, launch

    for module in (launch, denoise, attention):
        monkeypatch.setattr(module, "torch", Filled())


@pytest.fixture(autouse=True)
def patched_once(monkeypatch) -> None:
    """The interpreter patches ``triton.language`` again for every call of a device function, which is half of its time: here once a launch."""
    from sjd2_kernels.fused import INTERPRETED

    if not INTERPRETED:
        return
    from triton import language
    from triton.runtime import interpreter

    patch, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[str] = set()

    def patch_once(function):
        modules = {module.__name__ for module in (language, language.core) if any(value is module for value in function.__globals__.values())}
        if modules <= patched and modules:
            return None
        patched.update(modules)
        return patch(function)

    def launch(self, *arguments, **named):
        patched.clear()  # what a launch has patched is undone at its end
        return run(self, *arguments, **named)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
