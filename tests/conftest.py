"""Fixtures that several folders share."""

from __future__ import annotations

import atexit
import gc
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
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


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector leaves it out, which would else look at half a million objects for a second, again and again."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # later than pytest's own last collections, of which there are several


@pytest.fixture(scope="session")
def pipeline() -> TextToImagePipeline:
    """The embedded model as users load it, on the CPU."""
    from sjd2 import TextToImagePipeline  # seconds, before which pytest-xdist could not start its workers

    return TextToImagePipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def exact_pipeline() -> TextToImagePipeline:
    """The embedded model in float64, where the number of inputs of a forward does not change what it rounds to."""
    import torch

    from sjd2 import TextToImagePipeline

    return TextToImagePipeline.from_pretrained(device="cpu", dtype=torch.float64)
