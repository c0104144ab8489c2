"""Images to tokens before training, on many machines: Ray Data deals the images out to a pool of actors, each with the model's image tokenizer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapters import Adapter, load_adapter
from ..cluster import Actors, cluster, rows_of
from ..files import check_writable, write_atomically
from .data import Entry, image_entries, open_image

__all__ = ["prepare_tokens"]


def _adapter(
    model: str | Path | None, entries: Mapping[str, Any] | None, device: str | None, height: int | None, width: int | None, threads: int | None = None
) -> Adapter:
    if threads is not None:
        torch.set_num_threads(threads)
    adapter = load_adapter(model, adapter=entries, device=device, dtype=torch.float32)
    adapter.grid = adapter.grid_of(height, width)
    return adapter


class _Encoder:
    """Loads the model once; is handed images and hands back their tokens, or what is wrong with one of them."""

    def __init__(self, load: Callable[[], Adapter], folder: str):
        self.adapter, self.folder = load(), Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        count = len(batch["index"])
        try:
            images = [open_image(Entry(**json.loads(text)), self.folder) for text in batch["entry"]]
        except ValueError as error:  # raised here, it would come back inside a report of Ray's
            nothing = np.zeros((count, self.adapter.layout(1).forced.shape[1]), dtype=np.int64)
            return {"index": batch["index"], "tokens": nothing, "error": [str(error)] * count}
        return {"index": batch["index"], "tokens": self.adapter.encode(images).numpy(), "error": [""] * count}


def _encode(entries: list[Entry], folder: Path, load: Callable[[], Adapter], actors: Actors, batch_size: int, report: Callable[[str], None]) -> Any:
    """Rows of tokens in the order of ``entries``."""
    tokens: list[Any] = [None] * len(entries)
    where = str(folder.resolve())
    with cluster(actors, "actors") as ray:

        class Bound(_Encoder):
            """With its arguments."""

            def __init__(self) -> None:
                super().__init__(load, where)

        items = [{"index": index, "entry": json.dumps(entry._asdict())} for index, entry in enumerate(entries)]
        rows = rows_of(ray, items, Bound, batch_size, actors)
        for done, row in enumerate(rows, 1):
            if row["error"]:
                raise ValueError(row["error"])
            tokens[row["index"]] = row["tokens"]
            if done == len(entries) or done % 1024 == 0:
                report(f"{folder}: {done:,} of {len(entries):,} images encoded")
    return tokens


def prepare_tokens(
    data: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    adapter: Mapping[str, Any] | None = None,
    height: int | None = None,
    width: int | None = None,
    actors: Actors | None = None,
    batch_size: int = 32,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Encode a folder of images on Ray, and write what ``finetune`` takes as ``data``: a .jsonl file of captions and tokens.

    Args:
        data: a folder of images with ``metadata.jsonl``, that every node sees.
        output: the .jsonl file.
        model, adapter, height, width: as for :func:`finetune`.
        actors: that encode, with a model each; default: one on this machine.
        batch_size: images encoded together.
        report: called with a line of text now and then.

    Raises:
        FileNotFoundError, OSError: no such folder or model, or a file that cannot be written.
        ValueError: another ending, a bad line or image, with its place.
        ImportError: Ray is not installed.
        RuntimeError: the cluster cannot be reached, or gave up.

    Example::

        prepare_tokens("pictures", "tokens.jsonl", model="FOLDER", actors=Actors(count=8, gpus=1))
    """
    folder, output, actors = Path(data), Path(output), actors or Actors()
    if output.suffix != ".jsonl":
        raise ValueError(f"output: expected a .jsonl file, got {output}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number >= 1, got {batch_size}")
    check_writable(output, "output")
    if not folder.is_dir():
        raise FileNotFoundError(f"data: {folder} is no folder")
    if model is not None and Path(model).exists():
        model = Path(model).resolve()  # an actor works elsewhere
    entries, prompts = image_entries(folder, _adapter(model, adapter, "cpu", height, width))
    if not entries:
        raise ValueError(f"data: expected at least one record in {folder}, got none")
    device = "cuda" if actors.gpus else "cpu"
    load = functools.partial(_adapter, model, adapter, device, height, width, threads=max(1, int(actors.cpus)))
    tokens = _encode(entries, folder, load, actors, batch_size, report)
    lines = (json.dumps({"prompt": prompt, "tokens": row.tolist()}) + "\n" for prompt, row in zip(prompts, tokens, strict=True))
    write_atomically(output, lambda scratch: scratch.write_text("".join(lines)))
    return output
