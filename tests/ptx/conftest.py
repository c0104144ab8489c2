"""Kernels run as what Triton compiles them to, on a machine without a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from sjd2_kernels.fused import INTERPRETED

_OBSTACLE = "Triton is not installed" if find_spec("triton") is None else "interpreted kernels cannot be compiled" if INTERPRETED else None
collect_ignore = ["test_kernels.py", "test_machine.py", "test_warpgroups.py"] if _OBSTACLE else []


def pytest_report_header() -> list[str]:
    return [f"tests/ptx is left out: {_OBSTACLE}"] if _OBSTACLE else []


@pytest.fixture
def garbage(monkeypatch) -> None:
    """What the launchers allocate is full of NaN and absurd integers."""
    from sjd2_kernels.fused import attention, denoise, launch
    from support.interpreted import Filled

    for module in (launch, denoise, attention):
        monkeypatch.setattr(module, "torch", Filled())
