"""Prompts alone, which is all that tuning on own drafts needs: read from disk (see ``sjd2.prompt_files``) and checked before training starts."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from ..prompt_files import read_prompt_file

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


def read_prompts(data: str | Path | Sequence[str]) -> Prompts:
    """Read a file of prompts, .txt or .jsonl, or take a list of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a line that is no prompt, or no prompt at all.
    """
    if isinstance(data, (str, Path)):
        return Prompts(read_prompt_file(data, "data", (".txt", ".jsonl")))
    prompts = Prompts(data)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"data: expected prompts, got {prompt!r}")
    if not prompts:
        raise ValueError(f"data: expected at least one prompt, got none in {data}")
    return prompts
