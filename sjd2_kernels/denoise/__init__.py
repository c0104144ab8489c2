"""``denoise``: a window of noisy embeddings moves on by the committed tokens and takes a denoising step."""

from .op import denoise

__all__ = ["denoise"]
