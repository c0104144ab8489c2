"""Emu3-Gen (2409.18869): image tokens in the vocabulary of a Llama-like model, an end-of-line token behind every row of the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from ..decoding import TokenLayout
from .base import SamplingDefaults
from .processed import ProcessorModel

__all__ = ["Emu3Adapter"]

#: What the published inference code steers away from.
_NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, normal quality, "
    "jpeg artifacts, signature, watermark, username, blurry."
)


class Emu3Adapter(ProcessorModel):
    """Prompts are taken as they are; the published code appends `` masterpiece, film grained, best quality.`` to them.

    An image of H × W tokens is H rows of W image tokens and an end-of-line token, then the tokens end-of-frame, end-of-image and end-of-text.

    Checkpoints are in the format of Transformers, such as BAAI/Emu3-Gen-hf.

    Args:
        model: loaded by Transformers.
        processor: of the same checkpoint.

    Raises:
        ValueError: image ids that are not one range, or a tokenizer without one of the structural tokens.
    """

    model: Emu3ForConditionalGeneration
    model_class, processor_class = Emu3ForConditionalGeneration, "Emu3Processor"
    processor_parts = ("tokenizer", "image_processor", "image_start_token", "fake_token_around_image", "eof_token")
    name = "emu3"
    entries = ("grid",)
    tells_images = ("image_sizes",)
    defaults = SamplingDefaults(guidance_scale=3.0, top_k=2048, negative_prompt=_NEGATIVE_PROMPT)

    def __init__(self, model: Emu3ForConditionalGeneration, processor: Emu3Processor):
        mapping = model.vocabulary_mapping
        image_ids = mapping.image_tokens
        if image_ids != list(range(image_ids[0], image_ids[0] + len(image_ids))):
            raise ValueError("model: expected image tokens with ids in one range, got gaps in config.vocabulary_map")
        text = self.checked(processor).tokenizer
        ends = {
            "end of line": mapping.eol_token_id,
            "end of frame": text.convert_tokens_to_ids(processor.eof_token),
            "end of image": text.convert_tokens_to_ids(processor.image_end_token),
            "end of text": text.eos_token_id,
        }
        for kind, token in ends.items():
            if token is None:
                raise ValueError(f"processor: expected an {kind} token, got none in its tokenizer")
        super().__init__(model, processor, image_ids[0], len(image_ids), tuple(ends.values()))
        self._patch: int = model.model.vqmodel.spatial_scale_factor
        self.grid = self.configured_grid((90, 90))

    def frozen_parts(self) -> list[nn.Module]:
        """See ``Adapter.frozen_parts``."""
        return [self.model.model.vqmodel]

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``: the digits between the tokens begin-of-image and image."""
        text, ids = self.processor.tokenizer, list(ids)
        start = text.convert_tokens_to_ids(self.processor.image_start_token)
        if start not in ids or ids[-1] != text.convert_tokens_to_ids(self.processor.fake_token_around_image):
            return None
        digits = re.fullmatch(r"(\d+)\*(\d+)", text.decode(ids[len(ids) - ids[::-1].index(start) : -1]))
        return (int(digits[1]), int(digits[2])) if digits else None

    def told(self, name: str, grid: tuple[int, int]) -> set[tuple[int, ...]] | None:
        """See ``SlicedCausalLM.told``: sizes in tokens."""
        return {grid}

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: whole tokens along both sides."""
        sides = []
        for name, side, default in (("height", height, self.grid[0]), ("width", width, self.grid[1])):
            if side is not None and (side < self._patch or side % self._patch):
                raise ValueError(f"{name}: expected a multiple of {self._patch} pixels, got {side}")
            sides.append(default if side is None else side // self._patch)
        return sides[0], sides[1]

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``: the caption, begin-of-image, the grid in digits, and the token that an image's tokens follow."""
        rows, columns = grid or self.grid
        # The processor finds the size from a ratio and an area: these give exactly this grid.
        size = {"ratio": f"{columns}:{rows}", "image_area": rows * columns * self.processor.downsample_ratio**2}
        return self.processor(text=list(prompts), return_for_image_generation=True, **size)["input_ids"]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        line, *end = range(self.vocab_size, self.vocab_size + len(self.structural_ids))
        return TokenLayout.grid(batch_size, *(grid or self.grid), row_end=(line,), end=end, device=self.device)

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``; one after the other, since a decoder of pixels takes more memory than one of tokens."""
        rows, columns = grid or self.grid
        ids = self.vocabulary_ids(tokens.to(self.device))
        with torch.no_grad():
            pixels = [self.model.decode_image_tokens(image_tokens=row[None], height=rows, width=columns)[0].float().cpu() for row in ids]
        return self.processor.postprocess(pixels, return_tensors="PIL.Image.Image")["pixel_values"]

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        rows, columns = self.grid
        size = columns * self._patch, rows * self._patch
        codes = []
        with torch.no_grad():
            for image in images:
                fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
                inputs = self.processor.image_processor([fitted], do_resize=False, return_tensors="pt").to(self.device)
                ids = self.model.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
                codes.append(ids.view(rows, columns + 1)[:, :-1] - self.image_id_start)
        tokens = self.layout(len(images)).forced.cpu()
        tokens[tokens < 0] = torch.stack(codes).long().flatten().cpu()
        return tokens
