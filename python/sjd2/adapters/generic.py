"""Any causal language model that writes images as tokens of its vocabulary, described by a few fields instead of a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sjd2_kernels import LogitsProcessing

from ..decoding import TokenLayout
from .base import ImageRequest, SamplingDefaults
from .causal_lm import SlicedCausalLM
from .loading import load_model
from .pixels import one_size, pictures
from .probe import check_logits
from .processed import check_processor
from .refusals import check_config, check_forward

__all__ = ["GenericAdapter", "ImageFields"]


@dataclass(frozen=True)
class ImageFields:
    """What the decoder must know of a model.

    Attributes:
        image_id_start, image_ids: the image ids of the vocabulary are ``image_id_start … image_id_start + image_ids − 1``.
        grid: rows and columns of an image's tokens, in raster order.
        row_end, end: ids of the vocabulary that follow every row, and all of them.
        prompt: text that the model is fed, up to what the first image token follows; ``{prompt}`` is where the caption goes.
        unconditional: text of guidance's other branch; default: ``prompt`` without a caption.
        add_special_tokens: whether the tokenizer adds its own (begin-of-text …) to that text.
        patch: pixels along a token's side, where sizes in pixels are to be understood.
        guidance_scale, temperature, top_k, top_p, negative_prompt: what the model is normally sampled with.

    Raises:
        ValueError: a value that cannot be.
    """

    image_id_start: int
    image_ids: int
    grid: tuple[int, int]
    row_end: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    prompt: str = "{prompt}"
    unconditional: str | None = None
    add_special_tokens: bool = True
    patch: int | None = None
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name, least in (("image_id_start", 0), ("image_ids", 1), *((("patch", 1),) if self.patch is not None else ())):
            value = getattr(self, name)
            if not _is_whole(value, least):
                raise ValueError(f"adapter.{name}: expected a whole number >= {least}, got {value!r}")
        for name, least, count in (("grid", 1, 2), ("row_end", 0, None), ("end", 0, None)):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(_is_whole(value, least) for value in values) or count not in (None, len(values)):
                raise ValueError(f"adapter.{name}: expected a list of {count or 'any number of'} whole numbers >= {least}, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if not isinstance(self.prompt, str) or "{prompt}" not in self.prompt:
            raise ValueError(f"adapter.prompt: expected text with {{prompt}} in it, got {self.prompt!r}")
        sampling = {name: getattr(self, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}
        for name, value in sampling.items():
            if not isinstance(value, (int, float)):
                raise ValueError(f"adapter.{name}: expected a number, got {value!r}")
        try:
            LogitsProcessing.create(1, **sampling)
        except ValueError as error:
            raise ValueError(f"adapter.{error}") from None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> ImageFields:
        """The fields of an entry ``sjd2`` of a configuration.

        Raises:
            ValueError: unknown or missing fields, too.
        """
        known = {field.name: field for field in fields(cls)}
        given = {name: value for name, value in entry.items() if name not in ("adapter", "denoising")}
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(f"adapter: expected fields of {', '.join(known)}, got {', '.join(unknown)}")
        if missing := [name for name, field in known.items() if field.default is MISSING and name not in given]:
            raise ValueError(f"adapter: expected the fields {', '.join(missing)}, got none of that name")
        return cls(**given)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class GenericAdapter(SlicedCausalLM):
    """A model that :class:`ImageFields` describe.

    Args:
        model: a causal language model of Transformers.
        text: its tokenizer.
        decode: pixels ``[B, 3, H, W]`` in [-1, 1] of image ids ``[B, rows, columns]``, counted from 0; without one there are tokens only.
        described: :class:`ImageFields` by name; they go before those of the configuration's ``sjd2``.

    Raises:
        ValueError: fields that are unknown, missing or do not fit the model, or a model that cannot be driven.

    Example:
        >>> from sjd2 import load_adapter
        >>> known = load_adapter(None, device="cpu")  # a Llama and a tokenizer
        >>> adapter = GenericAdapter(known.model, known.text, image_id_start=known.image_id_start, image_ids=1000, grid=(2, 2), top_k=100)
        >>> tuple(adapter.layout(1).forced.shape)
        (1, 4)
    """

    name = "generic"
    entries = tuple(field.name for field in fields(ImageFields))

    def __init__(
        self,
        model: PreTrainedModel,
        text: PreTrainedTokenizerBase,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **described: Any,
    ):
        found = ImageFields.of({**(getattr(model.config, "sjd2", None) or {}), **described})
        super().__init__(model, found.image_id_start, found.image_ids, (*found.row_end, *found.end))
        check_forward(model)
        self._check_ids(found)
        check_logits(self, range(found.image_id_start, found.image_id_start + min(found.image_ids, 64)))
        self.fields, self.text, self.decode = found, text, decode
        self.grid = found.grid
        self.defaults = SamplingDefaults(found.guidance_scale, found.temperature, found.top_k, found.top_p, found.negative_prompt)

    def _check_ids(self, found: ImageFields) -> None:
        rows, images = len(self._embedding.weight), range(found.image_id_start, found.image_id_start + found.image_ids)
        if images.stop > rows:
            raise ValueError(f"adapter.image_ids: expected ids below {rows}, the size of the vocabulary, got {images.start} … {images.stop - 1}")
        for name in ("row_end", "end"):
            for token in getattr(found, name):
                if token >= rows or token in images:
                    raise ValueError(f"adapter.{name}: expected ids of the vocabulary that are no image ids, got {token}")

    @classmethod
    def load(
        cls,
        folder: Path,
        config: PretrainedConfig,
        *,
        device: torch.device,
        dtype: torch.dtype | Literal["auto"],
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **options: Any,
    ) -> GenericAdapter:
        """Read a causal language model with its tokenizer; the fields stand in the configuration's ``sjd2``.

        Raises:
            OSError, ValueError: see the class; a file is missing, damaged, or does not fit the configuration.
        """
        check_config(config, config.get_text_config(decoder=True))
        ImageFields.of(getattr(config, "sjd2", None) or {})  # before the weights are read
        model, stored = load_model(AutoModelForCausalLM, folder, config, device=device, dtype=dtype, **options)
        adapter = cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), decode)
        adapter.stored_dtype = stored
        return adapter

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``; the processor is the tokenizer."""
        if processor is not None:
            check_processor(processor, "tokenizer", ("__call__", "save_pretrained"))
        return super().requested(model, ids, inputs, processor)

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``: a prompt that ends as ``ImageFields.prompt`` does, and holds no image."""
        end = self.text(self.fields.prompt.split("{prompt}")[-1], add_special_tokens=False)["input_ids"]
        if list(ids[len(ids) - len(end) :]) != end:
            return None
        return None if any(0 <= token - self.image_id_start < self.vocab_size for token in ids) else self.grid

    @property
    def missing_decoder(self) -> str | None:
        """See ``Adapter.missing_decoder``."""
        return None if self.decode is not None else "give the model's own decoder as decode=…, a function from tokens [B, rows, columns] to pixels"

    def save_pretrained(self, folder: Path) -> None:
        """See ``Adapter.save_pretrained``; ``decode`` is not written."""
        nn.Module.to(self.model, self.stored_dtype)
        entry = {"adapter": self.name, **asdict(self.fields), "grid": self.grid}
        self.model.config.update({"sjd2": {**(getattr(self.model.config, "sjd2", None) or {}), **entry}})
        self.model.save_pretrained(folder)
        self.text.save_pretrained(folder)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``."""
        room = self.text_config.max_position_embeddings - self.layout(1).forced.shape[1]
        for prompt, ids in zip(prompts, self.prompt_ids(prompts), strict=True):
            if not prompt.strip():
                raise ValueError("prompt: expected a caption, got an empty string")
            if len(ids) > room:
                raise ValueError(f"prompt: expected one that leaves room for an image, at most {room} tokens, got {len(ids)}")

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: there is one size."""
        if self.fields.patch is not None:
            return one_size(self.grid, self.fields.patch, height, width)
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                raise ValueError(f"{name}: expected none for a model whose field patch does not say how many pixels a token has, got {side}")
        return self.grid

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``."""
        filled = [self._text_of(prompt) for prompt in prompts]
        ids = self.text(filled, add_special_tokens=self.fields.add_special_tokens)["input_ids"]
        for text, row in zip(filled, ids, strict=True):
            if not row:
                raise ValueError(f"adapter.prompt: expected text of at least one token before an image, got {text!r}")
        return ids

    def _text_of(self, prompt: str) -> str:
        if not prompt and self.fields.unconditional is not None:
            return self.fields.unconditional
        return self.fields.prompt.replace("{prompt}", prompt)

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        line = len(self.fields.row_end)
        structural = range(self.vocab_size, self.vocab_size + len(self.structural_ids))
        return TokenLayout.grid(batch_size, *(grid or self.grid), row_end=structural[:line], end=structural[line:], device=self.device)

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``."""
        if self.decode is None:
            raise NotImplementedError(f"images: {self.missing_decoder}")
        grid = grid or self.grid
        free = self.layout(1, grid).forced[0].to(tokens.device) < 0
        return pictures(self.decode(tokens[:, free].reshape(-1, *grid)))

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        raise NotImplementedError("images: a model described by fields has no image encoder; tune it from tokens, or on its own drafts")
