"""Between PIL images and a VQ model's pixels in [-1, 1], and between pixels and token grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

__all__ = ["fitted_images", "fitted_pixels", "one_size", "pictures"]


def fitted_images(images: Sequence[Image.Image], height: int, width: int) -> list[Image.Image]:
    """RGB pictures of this size, cropped to their centre and resized (Lanczos) where they are larger or smaller."""
    return [ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS) for image in images]


def fitted_pixels(images: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """float32 ``[B, 3, height, width]`` in [-1, 1] of :func:`fitted_images`."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in fitted_images(images, height, width)])).permute(0, 3, 1, 2) / 127.5 - 1


def pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """Pictures of pixels ``[B, 3, H, W]`` in [-1, 1]; what lies beyond is cut off."""
    arrays = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def one_size(grid: tuple[int, int], patch: int, height: int | None, width: int | None) -> tuple[int, int]:
    """``grid``, for a model that makes no other; ``patch``: pixels along a token's side.

    Raises:
        ValueError: another size was asked for.
    """
    size = grid[0] * patch, grid[1] * patch
    for name, side, got in (("height", size[0], height), ("width", size[1], width)):
        if got is not None and got != side:
            raise ValueError(f"{name}: the model makes images of {size[0]}×{size[1]} pixels only, got {got}")
    return grid
