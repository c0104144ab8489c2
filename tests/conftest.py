"""Fixtures that several folders share."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

from sjd2 import TextToImagePipeline

# `make test-full` sets HYPOTHESIS_PROFILE=full.
settings.register_profile("quick", max_examples=150, deadline=None)
settings.register_profile("full", max_examples=34_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def pipeline() -> TextToImagePipeline:
    """The embedded model as users load it, on the CPU."""
    return TextToImagePipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def exact_pipeline() -> TextToImagePipeline:
    """The embedded model in float64, where the number of inputs of a forward does not change what it rounds to."""
    return TextToImagePipeline.from_pretrained(device="cpu", dtype=torch.float64)
