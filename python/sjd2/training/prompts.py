"""Prompts alone, which is all that tuning on own drafts needs: read from disk and checked before training starts.

a .txt file    a prompt per line; empty lines are skipped
a .jsonl file  a line ``{"prompt": …}`` or ``{"text": …}`` each; other fields are ignored
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Prompts", "read_prompts"]


class Prompts(list[str]):
    """Captions."""

    def digest(self) -> str:
        """A hash of all of them."""
        return hashlib.sha256(json.dumps(list(self)).encode()).hexdigest()

    def split(self, share: float, seed: int) -> tuple[Prompts, Prompts]:
        """All but ``share`` of them, and that share: at least one each.

        Raises:
            ValueError: fewer than two different ones.
        """
        different = list(dict.fromkeys(self))
        if len(different) < 2:
            raise ValueError(f"held_out: expected at least 2 different prompts to hold some of them out, got {len(different)}")
        random.Random(seed).shuffle(different)
        count = min(max(1, round(share * len(different))), len(different) - 1)
        held_out = set(different[:count])
        return Prompts(prompt for prompt in self if prompt not in held_out), Prompts(different[:count])


def _prompt(line: str) -> str:
    row = json.loads(line)
    found = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(found, str):
        raise ValueError('expected {"prompt": "…"} or {"text": "…"}')
    return found


def read_prompts(data: str | Path | Sequence[str]) -> Prompts:
    """Read a file of prompts, or take a list of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a line that is no prompt, or no prompt at all.
    """
    if not isinstance(data, (str, Path)):
        prompts = Prompts(data)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"data: expected prompts, got {prompt!r}")
    else:
        path = Path(data)
        if not path.is_file():
            raise FileNotFoundError(f"data: {path} is no file; own drafts take a file of prompts, .txt or .jsonl")
        if path.suffix not in (".txt", ".jsonl"):
            raise ValueError(f"data: expected a file of prompts, .txt or .jsonl, got {path}")
        prompts = Prompts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                try:
                    prompts.append(line.strip() if path.suffix == ".txt" else _prompt(line))
                except ValueError as error:
                    raise ValueError(f"data: {path}, line {number}: {error}") from error
    if not prompts:
        raise ValueError(f"data: expected at least one prompt, got none in {data}")
    return prompts
