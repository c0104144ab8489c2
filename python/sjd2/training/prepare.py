"""Images to tokens before training: in this process, or on many machines, where Ray Data deals them out to actors that have the model."""

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
from .data import Entry, image_entries, open_image, read_examples

__all__ = ["prepare_tokens"]


def _adapter(
    model: str | Path | None, entries: Mapping[str, Any] | None, device: Any, height: int | None, width: int | None, threads: int | None = None
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


def _on_actors(
    entries: list[Entry], folder: Path, load: Callable[[], Adapter], actors: Actors, batch_size: int, progress: Callable[[int, int], None]
) -> list[Any]:
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
            progress(done, len(entries))
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
    device: torch.device | str | None = None,
    batch_size: int = 32,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Encode a folder of images, and write what ``finetune`` takes as ``data``: a .jsonl file of captions and tokens, all at once.

    Args:
        data: a folder of images with ``metadata.jsonl``, which with ``actors`` every node has to see.
        output: the .jsonl file.
        model, adapter, height, width: as for :func:`finetune`.
        actors: of Ray's that encode, with a model each; default: this process does.
        device: of this process' model; actors are on GPUs if they have any.
        batch_size: images encoded together.
        report: called with a line of text now and then.

    Raises:
        FileNotFoundError, OSError: no such folder or model, or a file that cannot be written.
        ValueError: another ending, a bad line or image, with its place, or a device for actors.
        ImportError: Ray is not installed.
        RuntimeError: the cluster cannot be reached, or gave up.

    Example::

        prepare_tokens("pictures", "tokens.jsonl", model="FOLDER", actors=Actors(count=8, gpus=1))
    """
    folder, output = Path(data), Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(f"output: expected a .jsonl file, got {output}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number >= 1, got {batch_size}")
    check_writable(output, "output")
    if not folder.is_dir():
        raise FileNotFoundError(f"data: {folder} is no folder")
    if actors is not None and device is not None:
        raise ValueError(f"device: expected none beside actors, whose device their gpus say, got {device}")

    def progress(done: int, total: int) -> None:
        if done == total or done % 1024 == 0:
            report(f"{folder}: {done:,} of {total:,} images encoded")

    if actors is None:
        examples = read_examples(folder, _adapter(model, adapter, device, height, width), batch_size=batch_size, progress=progress)
        prompts, tokens = examples.prompts, list(examples.tokens)
    else:
        if model is not None and Path(model).exists():
            model = Path(model).resolve()  # an actor works elsewhere
        entries, prompts = image_entries(folder, _adapter(model, adapter, "cpu", height, width))
        if not entries:
            raise ValueError(f"data: expected at least one record in {folder}, got none")
        place, threads = "cuda" if actors.gpus else "cpu", max(1, int(actors.cpus))
        load = functools.partial(_adapter, model, adapter, place, height, width, threads=threads)
        tokens = _on_actors(entries, folder, load, actors, batch_size, progress)
    lines = (json.dumps({"prompt": prompt, "tokens": row.tolist()}) + "\n" for prompt, row in zip(prompts, tokens, strict=True))
    write_atomically(output, lambda scratch: scratch.write_text("".join(lines)))
    return output
