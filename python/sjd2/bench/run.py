"""Runs a benchmark: all variants in turn on each batch of pictures, in one process, so that whatever else the machine does hits all alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from .._version import __version__
from ..decoding import Progress
from ..pipeline import ImageReport, TextToImagePipeline
from .identity import code_digest, device_name, fingerprint
from .memory import PeakMemory
from .settings import BenchSettings, Variant
from .store import Store

__all__ = ["run_bench"]

#: Forwards that a variant is run for before anything is timed: the first ones pay for what the others find ready.
_WARM_UP = 3


class _WarmError(Exception):
    """Ends a warm-up."""


class _Commits:
    """Counts the tokens of every forward without making the host wait for the device."""

    def __init__(self) -> None:
        self._after: list[torch.Tensor] = []

    def __call__(self, progress: Progress) -> None:
        self._after.append(progress.committed.clone())

    def histograms(self, reports: list[ImageReport]) -> list[dict[str, int]]:
        """Of each picture: how many of its forwards gave so many tokens."""
        after = torch.stack(self._after, 1).cpu()
        counts = after.diff(dim=1, prepend=torch.zeros_like(after[:, :1]))
        return [
            {str(tokens): times for tokens, times in sorted(Counter(counts[row, : report.forwards].tolist()).items())}
            for row, report in enumerate(reports)
        ]


def _circumstances(pipeline: TextToImagePipeline, settings: BenchSettings) -> dict[str, Any]:
    """All that the figures of a run depend on."""
    adapter, model = pipeline.adapter, pipeline.adapter.model
    return {
        **settings.to_dict(),
        "model": {
            "adapter": adapter.name,
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "grid": list(adapter.grid),
            "negative_prompt": adapter.defaults.negative_prompt,
            "denoising": None if adapter.denoising is None else adapter.denoising.to_config(),
        },
        "device": device_name(adapter.device),
        "versions": {"sjd2-kernels": __version__, "code": code_digest(), "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _call(
    pipeline: TextToImagePipeline, settings: BenchSettings, variant: Variant, pictures: list[tuple[str, int]], callback: Callable[[Progress], None]
) -> list[ImageReport]:
    output = pipeline(
        [prompt for prompt, _ in pictures],
        seed=[seed for _, seed in pictures],
        method=variant.method,
        batch_size=len(pictures),
        cache=settings.cache,
        attention=settings.attention,
        negative_prompt=settings.negative_prompt,
        height=settings.height,
        width=settings.width,
        graphs=settings.graphs,
        callback=callback,
        output_type="tokens",
        **variant.options,
    )
    return output.reports


def _warm_up(pipeline: TextToImagePipeline, settings: BenchSettings, pictures: list[tuple[str, int]]) -> None:
    """A few forwards of every variant, unmeasured. What is wrong with a setting shows here, before anything is kept."""

    def enough(progress: Progress) -> None:
        if progress.iteration == _WARM_UP:
            raise _WarmError

    for variant in settings.variants:
        try:
            _call(pipeline, settings, variant, pictures, enough)
        except _WarmError:
            continue


def _run_cell(pipeline: TextToImagePipeline, settings: BenchSettings, variant: Variant, pictures: list[tuple[str, int]]) -> dict[str, Any]:
    """One variant on one batch of pictures."""
    commits = _Commits()
    with PeakMemory(pipeline.adapter.device) as memory:
        reports = _call(pipeline, settings, variant, pictures, commits)
    last = max(reports, key=lambda report: report.seconds)
    return {
        "seconds": last.seconds,
        "forward_seconds": last.forward_seconds,
        "peak_memory": memory.bytes,
        "pictures": [
            {
                "prompt": report.prompt,
                "seed": report.seed,
                "window": report.window,
                "forwards": report.forwards,
                "accepted_per_forward": report.accepted_per_forward,
                "tokens": report.tokens,
                "histogram": histogram,
            }
            for report, histogram in zip(reports, commits.histograms(reports), strict=True)
        ],
    }


def run_bench(
    pipeline: TextToImagePipeline, settings: BenchSettings, folder: str | Path, *, restart: bool = False, progress_bar: bool = False
) -> list[dict[str, Any]]:
    """Run what is not yet in ``folder``, and return every cell.

    A cell is one variant on one batch of pictures. Within a batch of pictures the variants take turns, each batch beginning with another one.
    Finished cells are in the folder when the next one begins; what interrupts the run costs at most one cell.

    Args:
        folder: of the results; see ``store.py`` for what it holds.
        restart: begin anew where the folder holds a run with other settings, or the same.
        progress_bar: show one on stderr.

    Raises:
        ValueError: the folder holds a run with other settings, or a setting is out of its range.
    """
    store = Store(folder)
    pictures, variants = settings.pictures, settings.variants
    pipeline.adapter.check_prompts(settings.prompts)
    circumstances = _circumstances(pipeline, settings)
    if not restart:
        store.check(circumstances)
    new = restart or not store.begun
    cells = [] if new else store.cells()
    done = {(cell["variant"], cell["first"]) for cell in cells}
    starts = range(0, len(pictures), settings.batch_size)
    if len(done) < len(variants) * len(starts):
        if settings.compile:
            pipeline.compile()
        _warm_up(pipeline, settings, pictures[: settings.batch_size])
    if new:
        store.begin(circumstances)
    with tqdm(total=len(variants) * len(starts), initial=len(done), unit="cell", disable=not progress_bar, leave=False) as bar:
        for turn, first in enumerate(starts):
            for place in range(len(variants)):
                index = (turn + place) % len(variants)
                if (index, first) in done:
                    continue
                bar.set_postfix_str(variants[index].method)
                batch = pictures[first : first + settings.batch_size]
                cell = {"variant": index, "first": first, **_run_cell(pipeline, settings, variants[index], batch)}
                store.add(cell)
                cells.append(cell)
                bar.update()
    return cells
