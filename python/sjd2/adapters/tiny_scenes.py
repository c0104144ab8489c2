"""TinyScenes, the model that ships with the package: a stock Llama over words and FSQ image codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..decoding import TokenLayout
from ..tiny_scenes.fsq import FSQTokenizer
from .base import ImageRequest, SamplingDefaults
from .causal_lm import SlicedCausalLM
from .kept import kept
from .loading import load_model
from .pixels import fitted_pixels, one_size, pictures

__all__ = ["TinyScenesAdapter"]


class TinyScenesAdapter(SlicedCausalLM):
    """Prompts are captions such as ``a red coat on a yellow background``; images are 32×32 pixels, 256 tokens."""

    name = "tiny_scenes"
    entries = ("image_id_start", "image_ids", "grid")
    defaults = SamplingDefaults(guidance_scale=2.0, temperature=0.9, top_k=100)

    def __init__(self, model: PreTrainedModel, text: PreTrainedTokenizerBase, tokenizer: FSQTokenizer):
        fields = model.config.sjd2
        super().__init__(model, fields["image_id_start"], fields["image_ids"])
        self.text, self.tokenizer, self.grid = text, tokenizer, tuple(fields["grid"])

    @classmethod
    def load(
        cls, folder: Path, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype | Literal["auto"], **options: Any
    ) -> TinyScenesAdapter:
        """Read a folder written by ``python -m sjd2.tiny_scenes.train --export``.

        Raises:
            OSError, ValueError: a file is missing, damaged, or does not fit the configuration.
        """
        model, stored = load_model(AutoModelForCausalLM, folder, config, device=device, dtype=dtype, **options)
        text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        adapter = cls(model, text, FSQTokenizer.from_pretrained(folder).to(device))
        adapter.stored_dtype = stored
        return adapter

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``: whatever is words alone asks for an image."""
        fields = model.config.sjd2
        if any(token >= fields["image_id_start"] for row in ids for token in row):
            return None
        sliced = kept(SlicedCausalLM, model, fields["image_id_start"], fields["image_ids"])
        return ImageRequest(sliced, TokenLayout.grid(len(ids), *fields["grid"], device=sliced.device))

    def save_pretrained(self, folder: Path) -> None:
        """See ``Adapter.save_pretrained``."""
        torch.nn.Module.to(self.model, self.stored_dtype)  # the model's own `to` is wrapped beyond what a type checker follows
        self.model.save_pretrained(folder)
        self.text.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``."""
        unknown: dict[str, None] = {}
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("prompt: expected a caption, got an empty string")
            encoded = self.text(prompt, return_offsets_mapping=True)
            ids, limit = encoded["input_ids"], self.text.model_max_length
            if len(ids) > limit:
                raise ValueError(f"prompt: expected at most {limit - 2} words, got {len(ids) - 2}")
            offsets = zip(ids, encoded["offset_mapping"], strict=True)
            unknown |= dict.fromkeys(prompt[start:end] for token, (start, end) in offsets if token == self.text.unk_token_id)
        if unknown:
            warnings.warn(f"prompt: the model does not know {', '.join(unknown)}", stacklevel=3)

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: there is one size."""
        return one_size(self.grid, self.tokenizer.config.patch, height, width)

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``."""
        return self.text(list(prompts))["input_ids"]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        return TokenLayout.grid(batch_size, *self.grid, device=self.device)

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``."""
        return pictures(self.pixels(tokens))

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        height, width = (side * self.tokenizer.config.patch for side in self.grid)
        return self.tokenizer.encode(fitted_pixels(images, height, width).to(self.device)).flatten(1).cpu()

    def pixels(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 ``[B, 3, 32, 32]`` in [-1, 1] of token sequences ``[B, 256]``."""
        return self.tokenizer.decode(tokens.to(self.device).reshape(-1, *self.grid))
