"""Fixtures that several folders share."""

from __future__ import annotations

import pytest
import torch

from sjd2 import TextToImagePipeline


@pytest.fixture(scope="session")
def pipeline() -> TextToImagePipeline:
    """The embedded model as users load it, on the CPU."""
    return TextToImagePipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def exact_pipeline() -> TextToImagePipeline:
    """The embedded model in float64, where the number of inputs of a forward does not change what it rounds to."""
    return TextToImagePipeline.from_pretrained(device="cpu", dtype=torch.float64)
