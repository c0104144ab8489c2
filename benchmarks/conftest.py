"""``pytest benchmarks``: times of the ops under pytest-benchmark; ``--small`` runs small shapes, which only shows that they run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--small", action="store_true", help="small shapes: shows that every benchmark runs, times mean nothing")


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> bool:
    """Whether times mean nothing."""
    return request.config.getoption("--small")
