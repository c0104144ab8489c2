"""What is to be drawn: a job per picture, read from a file of prompts.

a .txt file      a prompt per line; empty lines are skipped
a .jsonl file    an object per line: ``prompt`` (or ``text``), and any of ``SETTINGS`` for this prompt alone; what else is there is kept
a .parquet file  the same as columns; a setting that is null in a row is not given

A line that cannot be used becomes a job that has failed already, so that it is recorded and stops nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SETTINGS", "Job", "derived_seed", "read_jobs", "shard_of"]

_NUMBER = (int, float)
#: Settings of a line of their own, and the types they may have.
SETTINGS: dict[str, tuple[type, ...]] = {
    "negative_prompt": (str,),
    "height": (int,),
    "width": (int,),
    "method": (str,),
    "window": (int,),  # not "auto": which is fastest depends on the moment, and the tokens on the window
    "initialisation": (str,),
    "keep_ratio": _NUMBER,
    "clean": _NUMBER,
    "levels": (int,),
    "guidance_scale": _NUMBER,
    "temperature": _NUMBER,
    "top_k": (int,),
    "top_p": _NUMBER,
}


@dataclass(frozen=True)
class Job:
    """A picture to be made.

    Attributes:
        line: of the file, counted from 0.
        copy: of the pictures of this line, counted from 0.
        prompt: ``None`` if the line could not be read.
        seed: of this picture.
        settings: those given for this prompt alone.
        extra: what else the line held.
        error: why there can be no picture.
    """

    line: int
    copy: int = 0
    prompt: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def id(self) -> str:
        """Name of the picture: the line, and which of its pictures."""
        return f"{self.line:07d}-{self.copy}"


def derived_seed(base: int, line: int, copy: int, prompt: str) -> int:
    """A seed in [0, 2⁶³) from what is drawn and where it stands: the same whenever, and in whatever company, the line is run."""
    digest = hashlib.blake2b(f"{base}\n{line}\n{copy}\n{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _text_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                yield number, error
                continue
            if line:
                yield number, line


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of every line: a mapping, or the exception that it raised."""
    if path.suffix == ".txt":
        for number, line in _text_lines(path):
            yield number, line if isinstance(line, Exception) else {"prompt": line}
    elif path.suffix == ".jsonl":
        for number, line in _text_lines(path):
            try:
                yield number, line if isinstance(line, Exception) else json.loads(line)
            except ValueError as error:
                yield number, error
    else:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError("prompts: a .parquet file needs pyarrow: pip install 'sjd2-kernels[ray]', or pip install pyarrow") from error
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield number, {name: value for name, value in row.items() if value is not None}
                number += 1


def _checked(record: Any) -> tuple[str, int | None, dict[str, Any], dict[str, Any]]:
    """Prompt, seed, settings, and the rest of a line."""
    if isinstance(record, Exception):
        raise ValueError(str(record))
    if not isinstance(record, dict):
        raise ValueError(f'expected an object such as {{"prompt": "…"}}, got {json.dumps(record)[:60]}')
    rest = dict(record)
    prompt = rest.pop("prompt", None) if "prompt" in rest else rest.pop("text", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt: expected text, got {prompt!r}")
    seed = rest.pop("seed", None)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed: expected a whole number in [0, {2**63}), got {seed!r}")
    settings = {}
    for name, types in SETTINGS.items():
        if name in rest:
            value = rest.pop(name)
            if isinstance(value, bool) or not isinstance(value, types):
                raise ValueError(f"{name}: expected {' or '.join(one.__name__ for one in types)}, got {value!r}")
            settings[name] = value
    return prompt, seed, settings, rest


def read_jobs(path: str | Path, *, seed: int = 0, num_images: int = 1) -> Iterator[Job]:
    """The jobs of a file, in its order, one after the other.

    Args:
        path: see the module.
        seed: from which those of pictures are derived, see :func:`derived_seed`. A line with a seed of its own has it for its first picture, and the
            next picture's is one higher.
        num_images: pictures of every line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
        ImportError: a package that a kind of file needs is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"prompts: {path} is no file; expected a .txt, .jsonl or .parquet file")
    if path.suffix not in (".txt", ".jsonl", ".parquet"):
        raise ValueError(f"prompts: expected a .txt, .jsonl or .parquet file, got {path}")
    return _jobs(path, seed, num_images)


def _jobs(path: Path, base: int, num_images: int) -> Iterator[Job]:
    for line, record in _records(path):
        try:
            prompt, own_seed, settings, extra = _checked(record)
        except ValueError as error:
            yield Job(line, error=f"line {line + 1}: {error}")
            continue
        for copy in range(num_images):
            seed = derived_seed(base, line, copy, prompt) if own_seed is None else (own_seed + copy) % 2**63
            yield Job(line, copy, prompt, seed, settings, extra)


def shard_of(jobs: Iterable[Job], index: int, count: int) -> Iterator[Job]:
    """Those of the jobs that process ``index`` of ``count`` does: every ``count``-th line."""
    return (job for job in jobs if job.line % count == index)
