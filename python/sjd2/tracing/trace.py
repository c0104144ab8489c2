"""How one picture was decoded, iteration by iteration: what ``sjd2 generate --trace`` writes and ``sjd2 plot`` draws.

A trace file is a NumPy ``.npz`` archive without pickled objects. For a picture of N tokens that took I forwards of a window of W it holds

    committed   int32 [I]      tokens that were final after each forward
    tokens      int32 [N]      the finished sequence, structural tokens included
    structural  bool  [L]      tokens that the layout gives (end of line …), which no forward decides; L > N where a picture ended early
    drafts      int32 [I, W]   what the window that follows ``committed`` holds after each forward; −1 past the picture's end
    levels      int8  [I, W]   noise levels of those drafts, 0 for clean; absent where the method does not denoise
    image       uint8 [bytes]  the picture as PNG; absent where tokens cannot become pixels
    about       text           JSON: prompt, method, seed, window, grid, row_stride, the sampling settings, and the figures of the report
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..decoding import TokenLayout
from ..files import write_atomically
from ..pipeline import PipelineOutput
from .recorder import Recorder

__all__ = ["Trace", "traces_of"]

_PARTS = ("committed", "tokens", "structural", "drafts", "about")


@dataclass(frozen=True)
class Trace:
    """One picture's decoding; see the module for shapes.

    Attributes:
        about: what was asked for and what came of it.
        image: the picture, where there is one.
    """

    committed: np.ndarray
    tokens: np.ndarray
    structural: np.ndarray
    drafts: np.ndarray
    about: dict[str, Any]
    levels: np.ndarray | None = None
    image: Image.Image | None = None

    @property
    def forwards(self) -> int:
        """I, forwards that the picture took."""
        return len(self.committed)

    @property
    def window(self) -> int:
        """W, drafts per forward."""
        return self.drafts.shape[1]

    def commit_iteration(self) -> np.ndarray:
        """int ``[N]``: the forward, counted from 1, that made each token final."""
        return np.searchsorted(self.committed, np.arange(len(self.tokens)), side="right") + 1

    def draft_changes(self) -> np.ndarray:
        """int ``[N]``: how often each token's draft was another one after a forward than before it, the last change into the final token included.

        The drafts that the first forward is fed are drawn at random and are not in a trace; changes count from what it made of them.
        """
        count, changes = len(self.tokens), np.zeros(len(self.tokens), dtype=int)
        before = np.full(count, -1)
        start = 0
        for committed, drafts in zip(self.committed, self.drafts, strict=True):
            after = before.copy()
            after[start:committed] = self.tokens[start:committed]
            inside = drafts[: count - committed]
            after[committed : committed + len(inside)] = inside
            changes += (before >= 0) & (after != before)
            before, start = after, committed
        return changes

    def cells(self, values: np.ndarray) -> np.ndarray:
        """``values [N]`` on the picture's grid, float ``[rows, columns]``: structural tokens are left out.

        A picture that ended early has NaN where tokens are missing. Tokens before the grid (GLM-Image's draft of the image) are left out, too;
        tokens without a grid are one line.
        """
        padded = np.full(len(self.structural), np.nan)
        padded[: len(values)] = values
        free = padded[~self.structural]
        rows, columns = self.about["grid"] or (1, len(free))
        return free[len(free) - rows * columns :].reshape(rows, columns)

    def save(self, path: str | Path) -> None:
        """Write a trace file (``.npz``), whole or not at all."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in _PARTS[:-1]}
        parts["about"] = np.array(json.dumps(self.about))
        if self.levels is not None:
            parts["levels"] = self.levels
        if self.image is not None:
            buffer = io.BytesIO()
            self.image.save(buffer, format="png")
            parts["image"] = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        write_atomically(Path(path), lambda scratch: np.savez_compressed(scratch, **parts))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no trace, or a damaged one.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"trace: {path} is no file; `sjd2 generate --trace` writes one")
        try:
            with np.load(path, allow_pickle=False) as archive:
                parts = {name: archive[name] for name in archive.files}
            about = json.loads(str(parts.pop("about")))
            encoded = parts.pop("image", None)
            image = None if encoded is None else Image.open(io.BytesIO(encoded.tobytes()))
            if image is not None:
                image.load()
            trace = cls(about=about, image=image, **parts)
            fits = trace.drafts.shape[0] == len(trace.committed) and len(trace.structural) >= len(trace.tokens)
            fits = fits and trace.drafts.ndim == 2 and (trace.levels is None or trace.levels.shape == trace.drafts.shape) and "grid" in about
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"trace: {path} is no trace that `sjd2 generate --trace` wrote, or is damaged: {error}") from error
        if not fits:
            raise ValueError(f"trace: {path} is damaged: its parts do not fit each other")
        return trace


def traces_of(
    recorder: Recorder,
    output: PipelineOutput,
    layout: TokenLayout,
    grid: Sequence[int] | None,
    **settings: Any,
) -> list[Trace]:
    """A trace of every picture of a call of the pipeline.

    Args:
        recorder: was the call's ``callback``.
        output: what the call gave.
        layout: of one picture.
        grid: rows and columns of its tokens, structural ones not counted; ``None``: there is none.
        settings: written down with it: guidance scale, temperature …
    """
    found = []
    structural = (layout.forced[0] >= 0).cpu().numpy()
    rows = [(recording, row) for recording in recorder.recordings() for row in range(len(recording.committed))]
    for index, (report, (recording, row)) in enumerate(zip(output.reports, rows, strict=True)):
        count = len(report.tokens)
        began = int((recording.committed[row] > 0).long().argmax())  # a row that had to wait commits with its first forward, like any other
        own = slice(began, began + report.forwards)
        committed = recording.committed[row, own].numpy().astype(np.int32)
        drafts = recording.drafts[row, own].numpy().astype(np.int32)
        past = committed[:, None] + np.arange(drafts.shape[1]) >= count
        drafts[past] = -1
        levels = None if recording.levels is None else np.where(past, 0, recording.levels[row, own].numpy()).astype(np.int8)
        about = {name: value for name, value in report.to_dict().items() if name != "tokens"}
        about |= {"window": drafts.shape[1], "grid": None if grid is None else list(grid), "row_stride": layout.row_stride, **settings}
        found.append(
            Trace(
                committed=committed,
                tokens=np.array(report.tokens, dtype=np.int32),
                structural=structural,
                drafts=drafts,
                levels=levels,
                about=about,
                image=output.images[index] if output.images else None,
            )
        )
    return found
