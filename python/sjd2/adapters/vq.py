"""The VQ tokenizer that Janus and LlamaGen (2406.06525) share, Transformers' ``JanusVQVAE``: pictures to codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from .pixels import fitted_pixels

__all__ = ["codes_of", "pixels_per_token"]


def pixels_per_token(vq: Any) -> int:
    """Along a token's side."""
    return 2 ** (len(vq.config.channel_multiplier) - 1)


def codes_of(vq: Any, images: Sequence[Image.Image], grid: tuple[int, int]) -> torch.Tensor:
    """Codes int64 ``[B, N]``, on the CPU, of pictures cropped and resized to ``grid`` tokens.

    The code of a place is the entry of the codebook that its latent vector makes the smallest angle with: the tokenizer was trained so, and
    its decoder looks at directions alone. (``JanusVQVAE.encode`` takes vectors as they are, and finds other codes where the entries of the
    codebook differ in length.)
    """
    height, width = (side * pixels_per_token(vq) for side in grid)
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)
    codes = []
    with torch.no_grad():
        for image in images:
            pixels = fitted_pixels([image], height, width).to(codebook.device, codebook.dtype)
            latents = vq.quant_conv(vq.encoder(pixels))[0].flatten(1).T
            codes.append((latents @ codebook.T).argmax(-1).cpu())
    return torch.stack(codes)
