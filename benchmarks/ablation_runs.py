"""Running the cells of the ablations, and keeping what they gave, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablation_cells import Cell
from conditions import conditions, weights_digest
from sjd2 import TextToImagePipeline
from sjd2.bench import code_digest
from sjd2.files import write_atomically

#: Of the conditions, those that another figure has to be run again for.
DECISIVE = ("device", "torch", "transformers")


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: tokens int64 ``[images, N]``, tokens per forward of every image, seconds per image in batches."""

    tokens: torch.Tensor
    tokens_per_forward: torch.Tensor
    seconds: float


class Runs:
    """Cells run on the same prompts and seeds, each stored in a file of ``work`` as soon as it is done.

    A file is named by everything that its figures depend on: settings, prompts, weights, code, versions and device. What was stored under other
    circumstances is never read.

    Args:
        folders: of the models, by the names that cells give them.
        work: created if need be.
    """

    def __init__(self, folders: dict[str, Path], prompts: list[str], work: Path, *, device: str = "cpu", batch_size: int = 16):
        self.prompts, self.work, self.batch_size = prompts, work, batch_size
        self.pipelines = {name: TextToImagePipeline.from_pretrained(folder, device=device) for name, folder in folders.items()}
        self.weights = {name: weights_digest(folder) for name, folder in folders.items()}
        defaults = next(iter(self.pipelines.values())).adapter.defaults
        self.sampling = {name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p")}
        self.conditions = conditions(device)
        self.code = code_digest()
        self._warm = False

    def _path(self, cell: Cell) -> Path:
        key: dict[str, Any] = {
            "cell": cell.settings(),
            "weights": self.weights[cell.model],
            "prompts": self.prompts,
            "sampling": self.sampling,
            "batch_size": self.batch_size,
            "code": self.code,
            "conditions": {name: self.conditions[name] for name in DECISIVE},
        }
        del key["cell"]["model"]  # a name; what it stands for is in the weights
        return self.work / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.pt"

    def is_stored(self, cell: Cell) -> bool:
        """Whether the cell was run before under the same circumstances."""
        return self._path(cell).exists()

    def stored(self, cell: Cell) -> Outcome:
        """What it gave then."""
        return Outcome(**torch.load(self._path(cell)))

    def run(self, cell: Cell) -> Outcome:
        """Run the cell and store what it gave."""
        pipeline = self.pipelines[cell.model]
        if not self._warm:  # the first forward of a process pays for what the others find ready
            pipeline(self.prompts[0], method="mc-sjd")
            self._warm = True
        started = time.perf_counter()
        output = pipeline(
            self.prompts,
            method=cell.preset,
            guidance_scale=cell.guidance_scale,
            batch_size=self.batch_size,
            progress_bar=sys.stderr.isatty(),
            **self.sampling,
        )
        seconds = (time.perf_counter() - started) / len(self.prompts)
        figures = {
            "tokens": output.tokens,
            "tokens_per_forward": torch.tensor([report.tokens_per_forward for report in output.reports], dtype=torch.float64),
            "seconds": seconds,
        }
        write_atomically(self._path(cell), lambda scratch: torch.save(figures, scratch))
        return Outcome(**figures)
