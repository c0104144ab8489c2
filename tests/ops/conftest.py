"""What holds of an op holds of its definition and of whatever runs by default."""

from __future__ import annotations

import pytest

from sjd2_kernels.backends import use_backend


@pytest.fixture(autouse=True, scope="module", params=["torch", "auto"])
def backend(request):
    """The back-end that runs where a test names none; tests of the choice itself begin as users do."""
    if request.module.__name__.endswith("test_backends") and request.param != "auto":
        pytest.skip("chooses by itself")
    with use_backend(request.param):
        yield request.param
