"""Makes pictures of jobs: what a single process does, and every process of a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sjd2_kernels import LogitsProcessing

from .._version import __version__
from ..attention import ATTENTIONS, choose_attention
from ..bench.identity import fingerprint
from ..decoding import resolve_preset
from ..files import write_atomically
from ..pipeline import ImageReport, TextToImagePipeline
from .jobs import Job

__all__ = ["Worker", "check_settings", "failed_row"]

#: What is wrong with the machine and not with a prompt: such an error ends the run. MemoryError and PyTorch's own name the way out.
_FATAL = (OSError, MemoryError, torch.OutOfMemoryError)


def failed_row(job: Job, error: str) -> dict[str, Any]:
    """The manifest row of a job without a picture."""
    return {"id": job.id, "line": job.line, "status": "failed", "error": error, "prompt": job.prompt, "seed": job.seed, **_given(job)}


def _given(job: Job) -> dict[str, Any]:
    return {"settings": dict(job.settings), "extra": dict(job.extra)}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Whether settings of all jobs can be right, as far as that is known without a model; else every job would fail for the same reason.

    Raises:
        ValueError: one is not.
    """
    known = {name: value for name, value in settings.items() if value is not None}
    if known.get("attention", "model") not in ATTENTIONS:
        raise ValueError(f"--attention: expected one of {', '.join(ATTENTIONS)}, got {known['attention']!r}")
    preset = {name: known.get(name) for name in ("initialisation", "keep_ratio", "clean", "levels")}
    resolve_preset(known.get("method", "mc-sjd"), window=known.get("window"), **preset)
    LogitsProcessing.create(1, **{name: known[name] for name in ("guidance_scale", "temperature", "top_k", "top_p") if name in known})


class Worker:
    """A loaded model, and where its pictures go.

    Args:
        pipeline: draws.
        folder: of the batch; pictures lie where ``place`` says, from there.
        place: of a job's picture.
        settings: of all jobs, as the pipeline takes them; a job's own come first.
        batch_size: pictures decoded together.
        tokens: write token ids into the manifest.

    Raises:
        ValueError: an attention that this machine or this model cannot use.
    """

    def __init__(
        self,
        pipeline: TextToImagePipeline,
        folder: Path,
        place: Callable[[Job], Path],
        *,
        settings: Mapping[str, Any],
        batch_size: int,
        tokens: bool = True,
    ):
        self.pipeline, self.folder, self.place = pipeline, folder, place
        self.settings, self.batch_size, self.tokens = settings, batch_size, tokens
        self.fingerprint = fingerprint(pipeline.adapter.model)
        adapter = pipeline.adapter
        attention = settings.get("attention") or "model"
        choose_attention(attention, adapter.attention_shape, adapter.device, rows=1, inputs=1, columns=1, timesteps=0)

    def run(self, jobs: Sequence[Job], done: Callable[[dict[str, Any]], None]) -> None:
        """Make the pictures of ``jobs``; ``done`` is handed each one's manifest row as soon as its picture lies in its place.

        Jobs of the same settings are decoded together. A job that cannot be done is handed over as failed, and the others go on.

        Raises:
            OSError: a picture cannot be written.
            MemoryError, torch.OutOfMemoryError: the batch is too large.
        """
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            if job.error is not None or job.prompt is None:
                done(failed_row(job, job.error or "no prompt"))
            elif (error := self._refused(job)) is not None:
                done(failed_row(job, error))
            else:
                groups.setdefault(json.dumps(job.settings, sort_keys=True), []).append(job)
        for group in groups.values():
            self._together(group, done)

    def _refused(self, job: Job) -> str | None:
        """What the pipeline would say of the prompt."""
        try:
            self.pipeline.adapter.check_prompts([job.prompt or ""])
        except ValueError as error:
            return str(error)
        return None

    def _together(self, group: Sequence[Job], done: Callable[[dict[str, Any]], None]) -> None:
        left = dict(enumerate(group))
        fatal: list[BaseException] = []

        def finished(index: int, image: Image.Image | None, report: ImageReport) -> None:
            job = left[index]
            try:
                done(self._row(job, image, report))
            except BaseException as error:
                fatal.append(error)  # of the disk, or of whoever counts: not of a prompt
                raise
            del left[index]

        try:
            self._decode(group, finished)
        except (ValueError, ArithmeticError, RuntimeError, TypeError) as error:
            if fatal or isinstance(error, _FATAL):
                raise
            if len(group) == 1:
                done(failed_row(group[0], " ".join(str(error).split()) or type(error).__name__))
                return
            # Someone in the group is at fault. Those that are not yet done go on alone, and the error finds its owner.
            for job in list(left.values()):
                self._together([job], done)

    def _decode(self, group: Sequence[Job], finished: Callable[[int, Image.Image | None, ImageReport], None]) -> None:
        settings = {**self.settings, **group[0].settings}
        self.pipeline(
            [job.prompt or "" for job in group],
            seed=[job.seed for job in group],
            batch_size=self.batch_size,
            on_image=finished,
            **settings,
        )

    def _row(self, job: Job, image: Image.Image | None, report: ImageReport) -> dict[str, Any]:
        file = None
        if image is not None:
            file = self.place(job)
            write_atomically(self.folder / file, image.save)
        figures = report.to_dict()
        tokens = figures.pop("tokens")
        row = {"id": job.id, "line": job.line, "status": "done", "file": None if file is None else file.as_posix(), **figures, **_given(job)}
        row |= {"count": len(tokens), "model": self.fingerprint, "version": __version__, "finished": round(time.time(), 3)}
        return row | {"tokens": tokens} if self.tokens else row
