"""Where pictures go: names, checks before any work, writes that leave no half-written file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

from ..files import check_writable, write_atomically

__all__ = ["PictureFiles", "checked_json_path", "trace_paths"]

#: Pictures whose shorter side is below this are enlarged, so that they can be looked at.
_COMFORTABLE_SIDE = 256


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "image"


def checked_json_path(name: str | None) -> Path | None:
    """The path of ``--json``, known to be writable."""
    if name is None:
        return None
    path = Path(name)
    check_writable(path, "--json")
    return path


def _numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one file, and one with a number each for several."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def trace_paths(name: str | None, count: int) -> list[Path]:
    """Paths of ``--trace`` for ``count`` pictures, known to be writable; none without the option."""
    if name is None:
        return []
    if Path(name).suffix != ".npz":
        raise ValueError(f"--trace: expected a .npz file, got {name}")
    paths = _numbered(Path(name), count)
    for path in paths:
        check_writable(path, "--trace")
    return paths


class PictureFiles:
    """One path per picture, checked when built.

    One picture goes to the file named; several go to a folder, or beside the file named with a number each.

    Raises:
        OSError: a place that cannot be written.
        ValueError: a file type that Pillow cannot write, or an ``upscale`` below 1.
    """

    def __init__(self, output: str | None, prompts: list[str], seed: int, upscale: int | None):
        if upscale is not None and upscale < 1:
            raise ValueError(f"--upscale: expected a whole number >= 1, got {upscale}")
        self.upscale = upscale
        self.paths = self._paths(output, prompts, seed)
        for path in self.paths:
            if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
                raise ValueError(f"--output: expected a picture file such as {path.stem}.png, got {path.name}")
            check_writable(path, "--output")

    @staticmethod
    def _paths(output: str | None, prompts: list[str], seed: int) -> list[Path]:
        single = len(prompts) == 1
        folder = Path(output or ".")
        if output is not None and folder.suffix and not folder.is_dir() and not output.endswith(("/", os.sep)):
            return _numbered(folder, len(prompts))
        if output is None and single:
            return [folder / f"{_slug(prompts[0])}.png"]
        return [folder / f"{index:03d}-{_slug(prompt)}-seed{seed + index}.png" for index, prompt in enumerate(prompts)]

    def save(self, image: Image.Image, path: Path) -> None:
        """Write one picture, enlarged without smoothing."""
        factor = self.upscale or max(1, -(-_COMFORTABLE_SIDE // min(image.size)))
        enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        write_atomically(path, enlarged.save)
