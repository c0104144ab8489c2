"""A model of a few thousand parameters, on disk and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sjd2.adapters.tiny_scenes import TinyScenesAdapter
from support.tuning import load_model, write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Of the model; not to be written to."""
    return write_model(tmp_path_factory.mktemp("tuning") / "model")


@pytest.fixture
def adapter(folder) -> TinyScenesAdapter:
    """The model in float64, its parameters ready to be trained."""
    return load_model(folder)
