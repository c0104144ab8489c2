"""Writes down a run of the loop, iteration by iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..decoding import Progress

__all__ = ["Recorder", "Recording"]


@dataclass(frozen=True)
class Recording:
    """Of the B rows of one run, on the CPU, with I iterations of a window of W.

    Attributes:
        committed: int64 ``[B, I]``, final tokens after each iteration.
        drafts: int64 ``[B, I, W]``, what the window behind them then held.
        levels: int64 ``[B, I, W]``, the noise levels of those drafts; ``None``: nothing was denoised.
    """

    committed: torch.Tensor
    drafts: torch.Tensor
    levels: torch.Tensor | None


class Recorder:
    """A callback of ``decode`` and of the pipeline that keeps what every iteration ends with, call by call.

    What it keeps stays on the device until it is asked for, so that nothing waits.

    Example:
        >>> from sjd2 import TextToImagePipeline
        >>> recorder = Recorder()
        >>> output = TextToImagePipeline.from_pretrained(device="cpu")("a red coat", method="jacobi", callback=recorder)
        >>> int(recorder.recordings()[0].committed[0, -1])
        256
    """

    def __init__(self) -> None:
        self._runs: list[list[Progress]] = []

    def __call__(self, progress: Progress) -> None:
        """Keep one iteration; copies, since the run goes on writing to some of these tensors."""
        if progress.iteration == 1:
            self._runs.append([])
        levels = None if progress.levels is None else progress.levels.clone()
        self._runs[-1].append(replace(progress, committed=progress.committed.clone(), drafts=progress.drafts.clone(), levels=levels))

    def recordings(self) -> list[Recording]:
        """What was kept so far, one for each run that was begun."""
        return [
            Recording(
                torch.stack([kept.committed for kept in run], 1).cpu(),
                torch.stack([kept.drafts for kept in run], 1).cpu(),
                torch.stack([kept.levels for kept in run if kept.levels is not None], 1).cpu() if run[0].levels is not None else None,
            )
            for run in self._runs
        ]
