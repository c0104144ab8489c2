"""Fixtures that several folders share."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

from sjd2 import TextToImagePipeline

# `make test-full` sets HYPOTHESIS_PROFILE=full.
settings.register_profile("quick", max_examples=150, deadline=None)
settings.register_profile("full", max_examples=34_000, deadline=None)
settings.register_profile("few", max_examples=40, deadline=None)  # where every example compiles a kernel: benchmarks/gpu_suite.py
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

#: What cannot be imported without Matplotlib (extra ``bench``); other tests skip by themselves what is not there.
_PLOTTED = ["bench/test_cli.py", "benchmarks/test_ablations.py", "benchmarks/test_advance.py", "benchmarks/test_pictures.py"]
_PLOTTED += ["docs/test_blocks.py", "docs/test_text.py"]
collect_ignore = [] if find_spec("matplotlib") else _PLOTTED


def pytest_report_header() -> list[str]:
    return [f"without matplotlib these are left out: {', '.join(collect_ignore)}"] if collect_ignore else []


@pytest.fixture(scope="session")
def pipeline() -> TextToImagePipeline:
    """The embedded model as users load it, on the CPU."""
    return TextToImagePipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def exact_pipeline() -> TextToImagePipeline:
    """The embedded model in float64, where the number of inputs of a forward does not change what it rounds to."""
    return TextToImagePipeline.from_pretrained(device="cpu", dtype=torch.float64)
