"""Prompts on disk.

a .txt file    a prompt per line; empty lines are skipped
a .jsonl file  a line ``{"prompt": …}`` or ``{"text": …}`` each; other fields are ignored. GenEval's ``evaluation_metadata.jsonl`` is one.
a .json file   captions as COCO has them: ``{"annotations": [{"image_id": …, "caption": …}, …]}``; the first caption of every image
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["PROMPT_SUFFIXES", "read_prompt_file", "read_records"]

#: Kinds of prompt files.
PROMPT_SUFFIXES = (".txt", ".jsonl", ".json")


def _prompt(row: Any) -> str:
    found = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(found, str):
        raise ValueError('expected {"prompt": "…"} or {"text": "…"}')
    return found


def _captions(path: Path, argument: str) -> list[str]:
    """The first caption of every image of COCO's annotations, in the order of the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        first: dict[Any, str] = {}
        for row in rows:
            first.setdefault(row["image_id"], str(row["caption"]).strip())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{argument}: {path}: expected captions as COCO has them, {{"annotations": [{{"image_id": …, "caption": …}}]}}') from error
    return list(first.values())


def read_records(path: str | Path, argument: str) -> list[dict[str, Any]]:
    """Every line of a .jsonl file of prompts, with all its fields.

    Raises:
        ValueError: a line that is no prompt; the message names it.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
                _prompt(record)
            except ValueError as error:
                raise ValueError(f"{argument}: {path}, line {number}: {error}") from error
            records.append(record)
    return records


def read_prompt_file(path: str | Path, argument: str, suffixes: tuple[str, ...] = PROMPT_SUFFIXES) -> list[str]:
    """The prompts of a file.

    Args:
        argument: what messages call it.
        suffixes: kinds that are taken, of ``PROMPT_SUFFIXES``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a line that is no prompt, or no prompt at all.
    """
    path = Path(path)
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: {path} is no file; expected a file of prompts, {kinds}")
    if path.suffix not in suffixes:
        raise ValueError(f"{argument}: expected a file of prompts, {kinds}, got {path}")
    if path.suffix == ".txt":
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif path.suffix == ".jsonl":
        prompts = [_prompt(record) for record in read_records(path, argument)]
    else:
        prompts = _captions(path, argument)
    if not prompts:
        raise ValueError(f"{argument}: expected at least one prompt, got none in {path}")
    return prompts
