"""Measures the pictures of a benchmark's folder, variant by variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..adapters import Adapter
from ..bench import Store, fingerprint, labels
from ..bench.summary import with_interval
from ..files import write_atomically
from .clip import ClipScore
from .fid import FrechetDistance
from .geneval import GenEvalFolder, read_scores
from .pictures import batches, picture_files

__all__ = ["Measures", "evaluate", "folder_name"]


@dataclass(frozen=True)
class Measures:
    """What is measured, or written; what is ``None`` is not.

    Attributes:
        clip: gives CLIP-Scores.
        fid: distance to the pictures in ``references``.
        references: a folder of pictures.
        geneval: GenEval's metadata, and a folder for the pictures; scores are read where its evaluator has left them.
        pictures: a folder for all pictures.
        batch_size: pictures measured together.
    """

    clip: ClipScore | None = None
    fid: FrechetDistance | None = None
    references: Path | None = None
    geneval: tuple[Path, Path] | None = None
    pictures: Path | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if (self.fid is None) != (self.references is None):
            raise ValueError("references: expected a folder of pictures if there is a distance to measure, and none otherwise")


def folder_name(label: str) -> str:
    """A variant's label as the name of a folder: ``mc-sjd, W = 16`` as ``mc-sjd-W16``."""
    return "-".join(part.replace(" = ", "").replace(" ", "") for part in label.split(", "))


def _check_model(adapter: Adapter, settings: dict[str, Any]) -> None:
    if adapter.missing_decoder is not None:
        raise ValueError(f"model: expected one that makes pictures of tokens here: {adapter.missing_decoder}")
    found = {"adapter": adapter.name, "weights": fingerprint(adapter.model)}
    for name, value in found.items():
        if settings["model"][name] != value:
            raise ValueError(f"model: expected the one that the pictures were drawn by ({name} {settings['model'][name]}), got another ({value})")


@dataclass
class _Pictures:
    """The pictures of one variant, decoded when asked for."""

    adapter: Adapter
    grid: tuple[int, int]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def batches(self, count: int) -> Iterator[tuple[list[str], list[Image.Image]]]:
        """Prompts and pictures, ``count`` at a time."""
        length = self.adapter.layout(1, self.grid).forced.shape[1]
        for first in range(0, len(self.rows), count):
            part = self.rows[first : first + count]
            tokens = torch.zeros(len(part), length, dtype=torch.int64)
            for line, row in zip(tokens, part, strict=True):
                line[: len(row["tokens"])] = torch.tensor(row["tokens"])
            yield [row["prompt"] for row in part], self.adapter.images(tokens.to(self.adapter.device), self.grid)


def _measure(pictures: _Pictures, measures: Measures, name: str, bar: tqdm) -> dict[str, Any]:
    """All measures of one variant."""
    scores: list[float] = []
    geneval = None if measures.geneval is None else GenEvalFolder(measures.geneval[1] / name, measures.geneval[0])
    number = 0
    for prompts, images in pictures.batches(measures.batch_size):
        if measures.clip is not None:
            scores += measures.clip(images, prompts)
        if measures.fid is not None:
            measures.fid.add(images)
        for prompt, image in zip(prompts, images, strict=True):
            if geneval is not None:
                geneval.add(prompt, image)
            if measures.pictures is not None:
                write_atomically(measures.pictures / name / f"{number:06d}.png", image.save)
            number += 1
        bar.update(len(images))
    row: dict[str, Any] = {}
    if measures.clip is not None:
        row["clip_score"] = with_interval(scores)
    if measures.fid is not None:
        row["frechet_distance"] = measures.fid.distance()
    if measures.geneval is not None and (written := measures.geneval[1] / f"{name}.jsonl").exists():
        row["geneval"] = read_scores(written)
    return row


def evaluate(adapter: Adapter, store: Store, measures: Measures, *, progress_bar: bool = False) -> list[dict[str, Any]]:
    """A row for every variant of a benchmark that has finished pictures: its settings, and what was measured of them.

    CLIP-Scores are ``{"value", "low", "high"}``, mean and 95 % bootstrap interval; a Fréchet distance is one number of all pictures.

    Args:
        adapter: of the model that drew the pictures.
        store: of the benchmark.

    Raises:
        ValueError: another model, one that makes no pictures, nothing finished, or pictures that a measure cannot take.
    """
    settings = store.settings
    _check_model(adapter, settings)
    grid = adapter.grid_of(settings["height"], settings["width"])
    found = [_Pictures(adapter, grid) for _ in settings["variants"]]
    for cell in store.cells():
        found[cell["variant"]].rows += cell["pictures"]
    started = [index for index, pictures in enumerate(found) if pictures.rows]
    if not started:
        raise ValueError(f"{store.folder}: expected finished pictures, found none")
    if measures.fid is not None and measures.references is not None:
        few = [settings["variants"][index]["method"] for index in started if len(found[index].rows) < 2]
        if few:
            raise ValueError(f"--fid: expected at least 2 pictures of each method, got one of {', '.join(few)}")
        (_, (first, *_)), *_ = found[started[0]].batches(1)
        files = picture_files(measures.references, "--fid")
        measures.fid.add_references(batches(files, first.height, first.width, measures.batch_size))
    names = [folder_name(label) for label in labels(settings["variants"])]
    rows = []
    with tqdm(total=sum(len(found[index].rows) for index in started), unit="picture", disable=not progress_bar, leave=False) as bar:
        for index in started:
            counts = {"pictures": len(found[index].rows)}
            rows.append(settings["variants"][index] | counts | _measure(found[index], measures, names[index], bar))
    return rows
