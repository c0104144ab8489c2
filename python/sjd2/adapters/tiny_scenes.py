"""TinyScenes, the model that ships with the package: a stock Llama over words and FSQ image codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..decoding import Prompt, TokenLayout
from ..tiny_scenes.fsq import FSQTokenizer
from .base import SamplingDefaults
from .causal_lm import SlicedCausalLM

__all__ = ["TinyScenesAdapter"]


class TinyScenesAdapter(SlicedCausalLM):
    """Prompts are captions such as ``a red coat on a yellow background``; images are 32×32 pixels, 256 tokens."""

    name = "tiny_scenes"
    defaults = SamplingDefaults(guidance_scale=2.0, temperature=0.9, top_k=100)

    def __init__(self, model: PreTrainedModel, text: PreTrainedTokenizerBase, tokenizer: FSQTokenizer):
        fields = model.config.sjd2
        super().__init__(model, fields["image_id_start"], fields["image_ids"])
        self.text, self.tokenizer, self.grid = text, tokenizer, tuple(fields["grid"])

    @classmethod
    def load(cls, folder: Path, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype) -> TinyScenesAdapter:
        """Read a folder written by ``python -m sjd2.tiny_scenes.train --export``.

        Raises:
            OSError, ValueError: a file is missing, damaged, or does not fit the configuration.
        """
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True)
        model, report = loaded
        if report["missing_keys"] or report["mismatched_keys"]:
            raise ValueError(f"weights: {len(report['missing_keys'])} tensors are missing and {len(report['mismatched_keys'])} have another shape")
        text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = model.to(device).eval().requires_grad_(False)
        return cls(model, text, FSQTokenizer.from_pretrained(folder).to(device))

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

    def prompt(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None) -> Prompt:
        """See ``Adapter.prompt``."""
        ids = self.text([*prompts, *(negative_prompts or ())])["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        return Prompt(self.embed_ids(padded.to(self.device)), lengths.to(self.device))

    def layout(self, batch_size: int) -> TokenLayout:
        """See ``Adapter.layout``."""
        return TokenLayout.grid(batch_size, *self.grid, device=self.device)

    def images(self, tokens: torch.Tensor) -> list[Image.Image]:
        """See ``Adapter.images``."""
        pixels = self.pixels(tokens)
        arrays = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array) for array in arrays]

    def pixels(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 ``[B, 3, 32, 32]`` in [-1, 1] of token sequences ``[B, 256]``."""
        return self.tokenizer.decode(tokens.to(self.device).reshape(-1, *self.grid))
