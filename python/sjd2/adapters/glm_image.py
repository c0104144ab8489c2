"""GLM-Image: a draft of the image in about 256 tokens, then the image itself; its pixels are made by a diffusion model in diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import GlmImageForConditionalGeneration

from ..decoding import TokenLayout
from .base import SamplingDefaults
from .pixels import fitted_images
from .processed import ProcessorModel

__all__ = ["GlmImageAdapter"]

#: Pixels along a token's side.
PATCH = 32


def _draft_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """The draft of an image of ``grid`` tokens: its shape, at the size of 16 × 16 tokens."""
    height, width = grid
    ratio = height / width
    return int(math.sqrt(ratio) * 16), int(math.sqrt(1 / ratio) * 16)


def _places(grids: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Positions ``[3, N]`` (temporal, height, width) of grids and an end marker; each begins behind the largest position before it."""
    parts, start = [], 0
    for height, width in grids:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        parts.append(start + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1))
        start += max(height, width)
    return torch.cat([*parts, torch.full((3, 1), start)], dim=1)


class GlmImageAdapter(ProcessorModel):
    """Images of any size whose sides are multiples of 32 pixels; the end marker is forced behind the last token.

    Tokens are those of the draft, of the image, and the end marker. Codes alone are drawn, and none of the ids for other uses that the model's
    head has rows for: a trained model draws none of them inside an image. It is sampled without guidance; an empty prompt stands for the
    unconditional branch if a guidance scale is asked for.

    Args:
        processor: the model's own; it writes both grids' sizes behind a prompt.
    """

    model: GlmImageForConditionalGeneration
    model_class, processor_class = GlmImageForConditionalGeneration, "GlmImageProcessor"
    processor_parts = ("tokenizer", "image_processor", "grid_bos_token", "grid_eos_token")
    name = "glm_image"
    entries = ("grid",)
    tells_images = ("image_grid_thw", "images_per_sample")
    defaults = SamplingDefaults(guidance_scale=1.0, temperature=0.9, top_p=0.75)

    def __init__(self, model: GlmImageForConditionalGeneration, processor: Any):
        codes: Any = model.config.vq_config
        super().__init__(model, processor, 0, codes.num_embeddings, structural_ids=(model.config.image_end_token_id,))
        self.grid = self.configured_grid((32, 32))

    @classmethod
    def processor_folder(cls, folder: Path) -> Path:
        """See ``ProcessorModel.processor_folder``: beside the model's folder where that has none, as diffusers stores them."""
        beside = folder.parent / "processor"
        within = any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json"))
        return folder if within or not beside.is_dir() else beside

    @property
    def missing_decoder(self) -> str | None:
        """See ``Adapter.missing_decoder``."""
        return (
            "GLM-Image's pixels are made by diffusers: GlmImagePipeline.from_pretrained(…)(prompt=prompts, "
            "prior_token_ids=adapter.prior_token_ids(tokens, grid), height=…, width=…).images"
        )

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``: the sizes of image and draft, which the processor writes behind a prompt."""
        text, config = self.processor.tokenizer, self.model.config
        if ids[-1] != config.image_start_token_id or config.image_token_id in ids:
            return None
        begin, end = re.escape(self.processor.grid_bos_token), re.escape(self.processor.grid_eos_token)
        sizes = re.search(rf"{begin}(\d+) (\d+){end}{begin}(\d+) (\d+){end}$", text.decode(ids[:-1]))
        if sizes is None:
            return None
        rows, columns, *draft = (int(side) for side in sizes.groups())
        return (rows, columns) if tuple(draft) == _draft_grid((rows, columns)) else None

    def told(self, name: str, grid: tuple[int, int]) -> set[tuple[int, ...]] | None:
        """See ``SlicedCausalLM.told``: grids of one frame, of the image and its draft, and how many those are."""
        return {(2,)} if name == "images_per_sample" else {(1, *grid), (1, *_draft_grid(grid))}

    def frozen_parts(self) -> list[nn.Module]:
        """See ``Adapter.frozen_parts``."""
        return [self.model.model.visual, self.model.model.vqmodel]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``."""
        size = self.processor.grid_bos_token
        for prompt in prompts:
            if size in prompt:
                raise ValueError(f"prompt: expected a caption without {size}, got {prompt!r}; give the size as height and width")
        super().check_prompts(prompts)

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: any multiples of 32."""
        sides = []
        for name, got, usual in (("height", height, self.grid[0]), ("width", width, self.grid[1])):
            side = usual * PATCH if got is None else got
            if side % PATCH:
                raise ValueError(f"{name}: expected a multiple of {PATCH} pixels, got {got}")
            sides.append(side // PATCH)
        grid = sides[0], sides[1]
        if not all(_draft_grid(grid)):
            raise ValueError(f"height, width: expected sides whose draft is at least one token wide, got {height} and {width}")
        return grid

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``."""
        rows, columns = grid or self.grid
        chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
        size = {"target_h": rows * PATCH, "target_w": columns * PATCH}
        encoded = self.processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors=None, processor_kwargs=size)
        return encoded["input_ids"]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``; ``row_stride`` is the image's, not the draft's."""
        grids = self._grids(grid)
        free = sum(height * width for height, width in grids)
        forced = torch.full((batch_size, free + 1), -1, device=self.device)
        forced[:, -1] = self.vocab_size
        lengths = torch.full((batch_size,), free + 1, device=self.device)
        return TokenLayout(forced, lengths, row_stride=grids[1][1], places=_places(grids).to(self.device))

    def _grids(self, grid: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the draft and the image."""
        grid = grid or self.grid
        return _draft_grid(grid), grid

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``: the decoder is not one of Transformers' models."""
        raise NotImplementedError(f"images: {self.missing_decoder}")

    def prior_token_ids(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """int64 ``[B, 4·h·w]``: the image's tokens of ``tokens [B, N]``, each four times, as diffusers' ``GlmImagePipeline`` takes them."""
        (draft_rows, draft_columns), (rows, columns) = self._grids(grid)
        image = tokens[:, draft_rows * draft_columns :][:, : rows * columns].reshape(-1, rows, columns)
        return image.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``; the draft is the encoding of the picture at the draft's size."""
        parts = [self._encoded(images, grid) for grid in self._grids(None)]
        return torch.cat([*parts, torch.full((len(images), 1), self.vocab_size)], dim=1)

    def _encoded(self, images: Sequence[Image.Image], grid: tuple[int, int]) -> torch.Tensor:
        """Codes int64 ``[B, h·w]`` of pictures, on the CPU; the vision model sees them at half their size, so that a patch is a token."""
        backbone: Any = self.model.base_model
        patch = backbone.config.vision_config.patch_size
        fitted = fitted_images(images, grid[0] * patch, grid[1] * patch)
        inputs = self.processor.image_processor(fitted, do_resize=False, return_tensors="pt").to(self.device)
        features = backbone.visual(inputs["pixel_values"].to(self.dtype), grid_thw=inputs["image_grid_thw"]).pooler_output
        features = features.view(len(images), *grid, -1).permute(0, 3, 1, 2)
        return backbone.vqmodel.encode(features).image_tokens.view(len(images), -1).cpu()
