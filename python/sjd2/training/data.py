"""What a model is tuned on, read from disk and checked before training starts.

    a folder       images, and ``metadata.jsonl`` with a line ``{"file_name": …, "text": …}`` for each (the ImageFolder convention of Hugging Face)
    a .jsonl file  ready tokens: a line ``{"prompt": …, "tokens": […]}`` per image
    a .json file   a list of the same, as ``sjd2 generate --json`` writes it

Other fields are ignored.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..adapters import Adapter
from ..files import write_atomically
from .collator import Example

__all__ = ["Entry", "TokenExamples", "image_entries", "open_image", "read_examples"]

METADATA = "metadata.jsonl"


class TokenExamples(Dataset):
    """Captions, and the tokens of their images ``[M, N]``; a dataset of :class:`Example`."""

    def __init__(self, prompts: list[str], tokens: np.ndarray):
        self.prompts, self.tokens = prompts, tokens

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Example:
        return {"prompt": self.prompts[index], "tokens": torch.from_numpy(self.tokens[index].astype(np.int64))}

    def split(self, share: float, seed: int) -> tuple[TokenExamples, TokenExamples]:
        """All but ``share`` of the examples, and that share: at least one each.

        Raises:
            ValueError: fewer than two examples.
        """
        if len(self) < 2:
            raise ValueError(f"held_out: expected at least 2 examples to hold some of them out, got {len(self)}")
        count = min(max(1, round(share * len(self))), len(self) - 1)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        rest, held_out = ([self.prompts[i] for i in part] for part in (sorted(order[count:]), sorted(order[:count])))
        return TokenExamples(rest, self.tokens[sorted(order[count:])]), TokenExamples(held_out, self.tokens[sorted(order[:count])])

    def digest(self) -> str:
        """A hash of all captions and tokens."""
        text = json.dumps(self.prompts).encode()
        return hashlib.sha256(text + np.ascontiguousarray(self.tokens, dtype=np.int32).tobytes()).hexdigest()[:16]


class Entry(NamedTuple):
    """A record and where it stands, for errors."""

    place: str
    fields: dict[str, Any]

    def take(self, name: str, kind: type, expected: str) -> Any:
        """A field of this kind, or a ValueError that says what was expected."""
        value = self.fields.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"{self.place}: expected {expected} in {name!r}, got {'nothing' if name not in self.fields else repr(value)[:60]}")
        return value


def _entry(place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected an object, got {repr(value)[:60]}")
    return Entry(place, value)


def _lines(path: Path) -> Iterator[Entry]:
    """Records of a .jsonl file; empty lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise ValueError(f"{place}: expected JSON, got {line.strip()[:40].decode(errors='replace')!r}") from error
            yield _entry(place, value)


def _list(path: Path) -> Iterator[Entry]:
    """Records of a .json file."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list, got {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield _entry(f"{path}, entry {number}", value)


def _check_prompts(places: list[str], prompts: list[str], adapter: Adapter) -> None:
    """Warn of what the model will not understand, all at once; name the line of a caption that it cannot take."""
    captions = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    try:
        if captions:
            adapter.check_prompts(captions)
    except ValueError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for place, prompt in zip(places, prompts, strict=True):
                try:
                    if prompt.strip():
                        adapter.check_prompts([prompt])
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from error
        raise


def _token_row(entry: Entry, forced: np.ndarray, vocab_size: int) -> np.ndarray:
    """The checked tokens of one record."""
    values = entry.take("tokens", list, "a list of token ids")
    if len(values) != len(forced):
        raise ValueError(f"{entry.place}: expected {len(forced)} tokens, got {len(values)}")
    for index, value in enumerate(values):
        if type(value) is not int or not (0 <= value < vocab_size or 0 <= value == forced[index]):
            raise ValueError(f"{entry.place}: expected token ids from 0 to {vocab_size - 1}, got {value!r} as token {index}")
    row = np.array(values, dtype=np.int32)
    for place in np.flatnonzero((forced >= 0) & (row != forced)):  # the first one
        raise ValueError(f"{entry.place}: expected the structural token {forced[place]} as token {place}, got {row[place]}")
    return row


def _read_tokens(entries: Iterator[Entry], adapter: Adapter) -> TokenExamples:
    """Examples of a file; of each record only its tokens are kept, four bytes each."""
    forced = adapter.layout(1).forced[0].cpu().numpy()
    places, prompts, rows = [], [], []
    for entry in entries:
        places.append(entry.place)
        prompts.append(entry.take("prompt", str, "a caption"))
        rows.append(_token_row(entry, forced, adapter.vocab_size))
    _check_prompts(places, prompts, adapter)
    return TokenExamples(prompts, np.stack(rows) if rows else np.empty((0, len(forced)), dtype=np.int32))


def open_image(entry: Entry, folder: Path) -> Image.Image:
    """The image of a record; a ValueError names the record of one that is not there or cannot be read."""
    name = entry.take("file_name", str, "the name of an image")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{entry.place}: expected the image {name} in {folder}, found none")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for files that it cannot read
        raise ValueError(f"{entry.place}: {name} cannot be read as an image: {error}") from error


def _encode(entries: list[Entry], folder: Path, adapter: Adapter, count: int, batch_size: int, progress: Callable[[int, int], None]) -> np.ndarray:
    """Tokens ``[M, N]`` of the images of a folder."""
    tokens = np.empty((len(entries), count), dtype=np.int32)
    for start in range(0, len(entries), batch_size):
        images = [open_image(entry, folder) for entry in entries[start : start + batch_size]]
        tokens[start : start + len(images)] = adapter.encode(images).numpy()
        progress(start + len(images), len(entries))
    return tokens


def _fingerprint(entries: list[Entry], folder: Path) -> str:
    """A hash of the names, sizes and times of the images: with the same one, kept tokens are those of the images."""
    facts = []
    for entry in entries:
        path = folder / entry.take("file_name", str, "the name of an image")
        facts.append([str(path), path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else [str(path)])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def image_entries(folder: Path, adapter: Adapter) -> tuple[list[Entry], list[str]]:
    """The records of a folder of images, and their captions, which are checked."""
    if not (folder / METADATA).is_file():
        raise ValueError(f"data: expected {METADATA} in {folder}, found none")
    entries = list(_lines(folder / METADATA))
    prompts = [entry.take("text", str, "a caption") for entry in entries]
    _check_prompts([entry.place for entry in entries], prompts, adapter)
    return entries, prompts


def _read_images(folder: Path, adapter: Adapter, batch_size: int, keep: Path | None, progress: Callable[[int, int], None]) -> TokenExamples:
    """Examples of a folder."""
    entries, prompts = image_entries(folder, adapter)
    fingerprint = _fingerprint(entries, folder)
    if keep is not None and keep.is_file():
        with np.load(keep) as kept:
            if kept["fingerprint"] == fingerprint:
                return TokenExamples(prompts, kept["tokens"])
    tokens = _encode(entries, folder, adapter, adapter.layout(1).forced.shape[1], batch_size, progress)
    if keep is not None and entries:
        write_atomically(keep, lambda scratch: np.savez(scratch, fingerprint=fingerprint, tokens=tokens))
    return TokenExamples(prompts, tokens)


def _nothing(done: int, total: int) -> None:
    """No progress is shown."""


def read_examples(
    path: str | Path,
    adapter: Adapter,
    *,
    batch_size: int = 32,
    keep: Path | None = None,
    progress: Callable[[int, int], None] = _nothing,
) -> TokenExamples:
    """Read and check what a model is tuned on, see the module; images are encoded by the model's own tokenizer.

    Args:
        path: a folder of images, or a file of tokens.
        adapter: of the model.
        batch_size: images encoded together.
        keep: a ``.npz`` file that receives the tokens of images, and gives them back as long as the images have not changed.
        progress: called with the images encoded so far and their number.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a record that is wrong, with file and line; an empty file.

    Example:
        >>> import json, pathlib, tempfile
        >>> from sjd2 import load_adapter
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "tokens.jsonl"
        >>> _ = file.write_text(json.dumps({"prompt": "a red coat", "tokens": [7] * 256}))
        >>> len(read_examples(file, load_adapter(None, device="cpu")))
        1
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data: {path} does not exist")
    if path.is_dir():
        examples = _read_images(path, adapter, batch_size, keep, progress)
    elif path.suffix in (".jsonl", ".json"):
        examples = _read_tokens(_lines(path) if path.suffix == ".jsonl" else _list(path), adapter)
    else:
        raise ValueError(f"data: expected a folder with {METADATA}, or a .jsonl or .json file of tokens, got {path}")
    if not len(examples):
        raise ValueError(f"data: expected at least one record in {path}, got none")
    return examples
