"""What an adapter provides beyond the loop's needs: prompts in, images out, and the model's usual settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from ..decoding import DecodableModel, Prompt, TokenLayout

__all__ = ["Adapter", "SamplingDefaults"]


@dataclass(frozen=True)
class SamplingDefaults:
    """The settings a model is normally sampled with; see ``LogitsProcessing.create``."""

    guidance_scale: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Adapter(DecodableModel, Protocol):
    """A text-to-image model as the pipeline sees it."""

    #: Name as stored in a configuration.
    name: str
    defaults: SamplingDefaults
    device: torch.device

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Look at all prompts of a call before the first of them is decoded; warn of what the model will not understand.

        Raises:
            ValueError: an empty prompt, or one that is too long.
        """
        ...

    def prompt(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None) -> Prompt:
        """Input embeddings of B checked prompts, followed by those of their unconditional partners if given (for guidance)."""
        ...

    def layout(self, batch_size: int) -> TokenLayout:
        """The token sequence of ``batch_size`` images."""
        ...

    def images(self, tokens: torch.Tensor) -> list[Image.Image]:
        """Pictures of decoded token sequences ``[B, N]``."""
        ...
