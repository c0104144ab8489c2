"""Janus and Janus-Pro (2501.17811): image tokens with an embedding and a head of their own beside a Llama's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import JanusForConditionalGeneration, JanusProcessor

from ..decoding import TokenLayout
from .base import SamplingDefaults
from .pixels import one_size
from .processed import ProcessorModel
from .vq import codes_of, pixels_per_token

__all__ = ["JanusAdapter"]


class JanusAdapter(ProcessorModel):
    """Prompts are one turn of a chat, in the processor's own template; images are square and of one size, without end-of-line tokens.

    The unconditional partner of a prompt is the prompt with padding in the place of its ids, all but begin-of-text and begin-of-image, and the
    model sees the padding. A negative prompt is a turn of its own.

    Checkpoints are in the format of Transformers, such as deepseek-community/Janus-Pro-7B.

    Args:
        model: a ``JanusForConditionalGeneration``.
        processor: its ``JanusProcessor``.

    Raises:
        ValueError: a generation configuration without the ids of padding and begin-of-text, or a processor without a chat template.
    """

    name = "janus"
    model: JanusForConditionalGeneration
    model_class, processor_class = JanusForConditionalGeneration, "JanusProcessor"
    processor_parts = ("tokenizer", "image_processor", "chat_template", "image_start_token")
    defaults = SamplingDefaults(guidance_scale=5.0)
    tells_images, own_ids = ("generation_mode",), True

    def __init__(self, model: JanusForConditionalGeneration, processor: JanusProcessor):
        vq_config: Any = model.config.vq_config
        super().__init__(model, self.checked(processor), 0, vq_config.num_embeddings)
        ids = model.generation_config
        for name in ("pad_token_id", "bos_token_id"):
            if not isinstance(getattr(ids, name), int):
                raise ValueError(f"model: expected a generation_config with one {name}, got {getattr(ids, name)}")
        if processor.chat_template is None:
            raise ValueError("processor: expected one with a chat template, got none")
        self._padding = ids.pad_token_id
        self._kept = {ids.bos_token_id, processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)}
        side = vq_config.num_patches
        self.grid: tuple[int, int] = (side, side)

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``: the mode tells, as it does the model's own ``generate``."""
        return self.grid if inputs.get("generation_mode") == "image" else None

    def unconditional_ids(self, ids: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """See ``ImageRequest.negative_ids``."""
        return [self._unconditional(row) for row in ids]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """See ``DecodableModel.embed``: an embedding and an MLP that belong to images."""
        return self.model.prepare_embeddings_for_image_generation(tokens).to(tokens.device)

    def image_embeddings(self) -> torch.Tensor:
        """See ``DecodableModel.image_embeddings``: the MLP over the whole table, made anew at each call, since tuning changes it."""
        return self.embed(torch.arange(self.vocab_size, device=self.device))

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.model.generation_head(hidden)

    def frozen_parts(self) -> list[nn.Module]:
        """See ``Adapter.frozen_parts``: what sees pictures, the tokenizer of images, and the head of words where it is no more than that."""
        inner, head = self.model.model, self.model.lm_head
        speaks_only = head.weight is not self._embedding.weight
        return [inner.vision_model, inner.aligner, inner.vqmodel, *([head] if speaks_only else [])]

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: there is one size."""
        return one_size(self.grid, pixels_per_token(self.model.model.vqmodel), height, width)

    def _unconditional(self, ids: Sequence[int]) -> list[int]:
        return [token if token in self._kept else self._padding for token in ids]

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``; of an empty prompt the unconditional ids, as many as a turn without words has."""
        rows = []
        for prompt in prompts:
            turn: Any = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True)
            ids = self.processor(text=[text], generation_mode="image", return_tensors="pt")["input_ids"][0].tolist()
            rows.append(ids if prompt else self._unconditional(ids))
        return rows

    def partner_ids(self, prompts: Sequence[str], negative_prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.partner_ids``; where a negative prompt is empty the partner is as long as its prompt."""
        pairs = zip(self.prompt_ids(prompts), negative_prompts, strict=True)
        return [self.prompt_ids([negative])[0] if negative else self._unconditional(row) for row, negative in pairs]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        return TokenLayout.grid(batch_size, *self.grid, device=self.device)

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``; one after the other, since a decoder of pixels takes more memory than one of tokens."""
        with torch.no_grad():
            pixels = [self.model.decode_image_tokens(row[None])[0].float().cpu() for row in tokens.to(self.device)]
        pixels = [one.permute(2, 0, 1).contiguous() for one in pixels]  # the image processor without torchvision reads no other order
        return self.processor.postprocess(pixels, return_tensors="PIL.Image.Image")["pixel_values"]

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        return codes_of(self.model.model.vqmodel, images, self.grid)
