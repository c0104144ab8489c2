"""Pictures as evaluation takes them, and the package that does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..adapters.pixels import fitted_images

__all__ = ["as_bytes", "batches", "picture_files", "require_torchmetrics"]


def require_torchmetrics() -> None:
    """Whether evaluation can run at all.

    Raises:
        ImportError: the ``eval`` extra is not installed.
    """
    try:
        import torchmetrics  # noqa: F401 - asked for, not used
    except ImportError as error:
        raise ImportError('torchmetrics is not installed, and CLIP-Score and FID need it: pip install "sjd2-kernels[eval]"') from error


def as_bytes(images: Sequence[Image.Image]) -> torch.Tensor:
    """uint8 ``[N, 3, H, W]`` of pictures of one size."""
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])


def picture_files(folder: str | Path, argument: str) -> list[Path]:
    """The pictures in a folder, in the order of their names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two pictures in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{argument}: expected a folder of pictures, {folder} is none")
    known = Image.registered_extensions()
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in known)
    if len(files) < 2:
        raise ValueError(f"{argument}: expected at least 2 pictures in {folder}, got {len(files)}")
    return files


def batches(files: Sequence[Path], height: int, width: int, count: int) -> Iterator[torch.Tensor]:
    """Pictures from disk, ``count`` at a time, cropped to the centre and resized (Lanczos) to one size."""
    for first in range(0, len(files), count):
        yield as_bytes(fitted_images([Image.open(path) for path in files[first : first + count]], height, width))
