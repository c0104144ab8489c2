"""GenEval (2310.11513): pictures in the folders that its evaluator reads, and the scores in what it writes.

Its evaluator, with the object detector behind it, is a program of its own (github.com/djghosh13/geneval):

    python evaluation/evaluate_images.py FOLDER/NAME --outfile FOLDER/NAME.jsonl --model-path DETECTOR
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_atomically
from ..prompt_files import read_records

__all__ = ["GenEvalFolder", "read_scores"]


class GenEvalFolder:
    """Writes pictures as ``00000/metadata.jsonl`` and ``00000/samples/0000.png`` …, a folder for each of GenEval's prompts.

    Args:
        folder: of one method's pictures.
        metadata: GenEval's ``evaluation_metadata.jsonl``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without a prompt or a tag, or a prompt twice.
    """

    def __init__(self, folder: Path, metadata: str | Path):
        if not Path(metadata).is_file():
            raise FileNotFoundError(f"--geneval: {metadata} is no file; GenEval has it as prompts/evaluation_metadata.jsonl")
        records = read_records(metadata, "--geneval")
        self._numbers = {record["prompt"]: number for number, record in enumerate(records) if "tag" in record and "prompt" in record}
        if not records or len(self._numbers) < len(records):
            raise ValueError(f"--geneval: {metadata}: expected GenEval's metadata, lines with a tag and a prompt each, none of them twice")
        self._folder, self._records = folder, records
        self._samples: dict[int, int] = defaultdict(int)

    def add(self, prompt: str, image: Image.Image) -> None:
        """Write the next picture of a prompt.

        Raises:
            ValueError: the prompt is none of GenEval's.
        """
        number = self._numbers.get(prompt)
        if number is None:
            raise ValueError(f"--geneval: expected pictures of GenEval's prompts, got one of {prompt!r}")
        place = self._folder / f"{number:05d}"
        if self._samples[number] == 0:
            line = json.dumps(self._records[number]) + "\n"
            write_atomically(place / "metadata.jsonl", lambda scratch: scratch.write_text(line, encoding="utf-8"))
        write_atomically(place / "samples" / f"{self._samples[number]:04d}.png", image.save)
        self._samples[number] += 1


def read_scores(path: Path) -> dict[str, Any]:
    """Scores in the file that GenEval's evaluator wrote: the share of right pictures of every task, and ``overall``, the mean over tasks.

    Raises:
        ValueError: another kind of file.
    """
    tasks: dict[str, list[float]] = defaultdict(list)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            tasks[row["tag"]].append(float(row["correct"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--geneval: {path}: expected what GenEval's evaluate_images.py writes: {error}") from error
    if not tasks:
        raise ValueError(f"--geneval: {path}: expected at least one line, got none")
    scores = {tag: sum(right) / len(right) for tag, right in tasks.items()}
    return {"overall": sum(scores.values()) / len(scores), **scores}
