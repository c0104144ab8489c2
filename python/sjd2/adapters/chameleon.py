"""Chameleon (2405.09818) with image generation: Anole (2407.06135) and Lumina-mGPT (2408.02657).

Both are Transformers' ``ChameleonForConditionalGeneration``. Its top-level forward makes image tokens impossible, so its backbone and the image rows
of its head are called.

Which of the two a checkpoint is, is decided in this order: by the option ``variant`` of ``from_pretrained``; by the entry ``adapter`` of the
configuration's ``sjd2``; by the field ``mask_image_logits``, which only configurations of Lumina-mGPT's own code have. A checkpoint with none of
these makes images as Chameleon itself does, which is Anole's way. Lumina-mGPT 2.0 has the same class and model type, but another vocabulary and
image tokenizer: it is refused, by its tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from ..decoding import TokenLayout
from .base import ImageRequest, SamplingDefaults
from .causal_lm import SlicedCausalLM
from .loading import load_model
from .pixels import fitted_pixels, one_size, pictures
from .processed import check_processor
from .vqgan import FILES, VQGAN, read_vqgan

__all__ = ["AnoleAdapter", "ChameleonAdapter", "LuminaMGPTAdapter"]

#: Names in the vocabulary; the tokenizer knows "end of turn" as a special token.
_BEGIN, _END_OF_TURN, _BEGIN_IMAGE, _END_IMAGE, _END_OF_LINE = "<s>", "<reserved08706>", "<racm3:break>", "<eoss>", "<reserved08799>"


def _processor(folder: Path) -> ChameleonProcessor | PreTrainedTokenizerBase:
    """What a checkpoint has: a processor, or, as Lumina-mGPT, a tokenizer alone."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"tokenizer: expected tokenizer.json in {folder}, found none; name a folder or repository that has one as "
            "from_pretrained(…, tokenizer=…), for Lumina-mGPT of any size Alpha-VLLM/Lumina-mGPT-7B-768"
        )
    whole = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return (ChameleonProcessor if whole else AutoTokenizer).from_pretrained(folder, local_files_only=True)


class ChameleonAdapter(SlicedCausalLM):
    """What both have in common.

    Image codes are not image ids: the vocabulary names the code that each id stands for (``model.model.vocabulary_mapping``).

    Args:
        model: loaded by Transformers.
        processor: of the checkpoint, or its tokenizer alone.
        vqgan: the image tokenizer; default: the encoder in the model, if it has one.

    Attributes:
        codes: int64 ``[V]``: the image tokenizer's code of each slice id.

    Raises:
        ValueError: a vocabulary or a tokenizer without the tokens that images need.
    """

    model: ChameleonForConditionalGeneration
    #: See ``Adapter``.
    name: str = "chameleon"
    entries: tuple[str, ...] = ("grid",)
    grid: tuple[int, int]
    #: Names of the structural tokens, in the order of their slice ids.
    _structural: tuple[str, ...] = ()

    def __init__(self, model: ChameleonForConditionalGeneration, processor: ChameleonProcessor | PreTrainedTokenizerBase, vqgan: VQGAN | None = None):
        mapping = model.model.vocabulary_mapping
        self.vocabulary: dict[str, int] = mapping.vocab_map
        image_ids = mapping.image_tokens
        if not image_ids or image_ids != list(range(image_ids[0], image_ids[0] + len(image_ids))):
            raise ValueError("model: expected image tokens with ids in one range, got gaps, or none, in config.vocabulary_map")
        super().__init__(model, image_ids[0], len(image_ids), [self._id(name) for name in self._structural])
        self.codes = torch.tensor([mapping.bpe2img[token] for token in image_ids])
        self.processor = processor
        self.text: Any = getattr(processor, "tokenizer", processor)
        check_processor(self.text, "ChameleonProcessor or tokenizer", ("__call__",))
        if self.text(_END_OF_TURN, add_special_tokens=False)["input_ids"] != [self._id(_END_OF_TURN)]:
            raise ValueError(f"processor: expected a tokenizer with {_END_OF_TURN} as token {self._id(_END_OF_TURN)}, got another one")
        if vqgan is not None:
            self.vqgan = vqgan
        #: Pixels along a token's side.
        self.patch: int = 2 ** (len(self._vq_config.channel_multiplier) - 1)

    @property
    def _vq_config(self) -> ChameleonVQVAEConfig:
        return cast(ChameleonVQVAEConfig, self.model.config.vq_config)

    @cached_property
    def vqgan(self) -> VQGAN | None:
        """The image tokenizer: what was given, or the encoder in the model; made when it is first needed."""
        vqmodel = getattr(self.model.model, "vqmodel", None)
        if vqmodel is None or vqmodel.encoder.conv_in.weight.is_meta:
            return None
        return VQGAN(self._vq_config, vqmodel.state_dict(), torch.promote_types(self.dtype, torch.float32))

    @classmethod
    def load(
        cls,
        folder: Path,
        config: PretrainedConfig,
        *,
        device: torch.device,
        dtype: torch.dtype | Literal["auto"],
        variant: str | None = None,
        target_size: int | None = None,
        vqgan: str | Path | None = None,
        tokenizer: str | Path | None = None,
        **options: Any,
    ) -> ChameleonAdapter:
        """Read a checkpoint in the format of Transformers, such as Alpha-VLLM/Lumina-mGPT-7B-768 or leloy/Anole-7b-v0.1-hf.

        Args:
            folder, config, device, dtype, options: see ``load_adapter``.
            variant: ``anole`` or ``lumina_mgpt``; default: see the module.
            target_size: of Lumina-mGPT: side of the square that the checkpoint was trained at, in pixels (the 512 in Lumina-mGPT-7B-512).
            vqgan: file with the weights of the image tokenizer, as Chameleon's release has it in ``vqgan.ckpt``; default: such a file in
                ``folder``, or the model's own weights where they hold the decoder.
            tokenizer: folder or hub name, where the checkpoint has no tokenizer: all sizes of Lumina-mGPT share that of Lumina-mGPT-7B-768.

        Raises:
            OSError, ValueError: a file is missing, damaged, or does not fit the configuration.
        """
        if variant is not None and variant not in _VARIANTS:
            raise ValueError(f"variant: expected {' or '.join(_VARIANTS)}, got {variant!r}")
        kind: type[ChameleonAdapter]
        if variant is None and cls is not ChameleonAdapter:
            kind = cls
        else:
            kind = _VARIANTS[variant or ("lumina_mgpt" if hasattr(config, "mask_image_logits") else "anole")]
        entry = {**(getattr(config, "sjd2", None) or {}), "adapter": kind.name}
        if target_size is not None:
            if kind is not LuminaMGPTAdapter:
                raise ValueError(f"target_size: expected none, for {kind.name} has one size, got {target_size}")
            entry["target_size"] = target_size
        config.update({"sjd2": entry})
        if not getattr(config, "vocabulary_map", None):
            raise ValueError("config.vocabulary_map: expected the ids of the vocabulary by name, got none")
        processor = _processor(folder) if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
        model, stored = load_model(ChameleonForConditionalGeneration, folder, config, device=device, dtype=dtype, optional="model.vqmodel", **options)
        found = read_vqgan(config.vq_config, folder, vqgan, torch.promote_types(model.dtype, torch.float32))
        adapter = kind(model, processor, found)
        adapter.stored_dtype = stored
        return adapter

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``."""
        kind = cls if cls is not ChameleonAdapter else _VARIANTS["lumina_mgpt" if hasattr(model.config, "mask_image_logits") else "anole"]
        return super(ChameleonAdapter, kind).requested(model, ids, inputs, processor)

    def _id(self, name: str) -> int:
        """Of a token of the vocabulary."""
        if name not in self.vocabulary:
            raise ValueError(f"model: expected the token {name} in config.vocabulary_map, got none")
        return self.vocabulary[name]

    def frozen_parts(self) -> list[nn.Module]:
        """See ``Adapter.frozen_parts``."""
        vqmodel = getattr(self.model.model, "vqmodel", None)
        return [] if vqmodel is None else [vqmodel]

    @property
    def missing_decoder(self) -> str | None:
        """See ``Adapter.missing_decoder``."""
        if self.vqgan is not None and self.vqgan.decoder is not None:
            return None
        return (
            f"{self.name}'s tokens become pixels in the VQGAN of Chameleon's release, which Transformers does not have: "
            f"put its {FILES[1]} (or {FILES[0]}) into the model's folder, or name the file as from_pretrained(…, vqgan=…)"
        )

    def save_pretrained(self, folder: Path) -> None:
        """See ``Adapter.save_pretrained``."""
        nn.Module.to(self.model, self.stored_dtype)
        self.model.config.update({"sjd2": {**(getattr(self.model.config, "sjd2", None) or {}), **self._entry()}})
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.vqgan is not None and self.vqgan.decoder is not None:
            self.vqgan.save(Path(folder))

    def _entry(self) -> dict[str, Any]:
        """What the configuration's ``sjd2`` says of a saved model."""
        return {"adapter": self.name}

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``."""
        room = self.text_config.max_position_embeddings - self.layout(1).forced.shape[1]
        images = range(self.image_id_start, self.image_id_start + self.vocab_size)
        markers = {self._id(name) for name in (_END_OF_TURN, _BEGIN_IMAGE, _END_IMAGE)}
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("prompt: expected a caption, got an empty string")
            ids = self.text(prompt, add_special_tokens=False)["input_ids"]
            if any(token in markers or token in images for token in ids):
                raise ValueError(f"prompt: expected text, got one with the model's own markers of turns or images in it: {prompt[:60]!r}")
            length = len(self.prompt_ids([prompt])[0])
            if length > room:
                raise ValueError(f"prompt: expected one that leaves room for an image, at most {room} tokens, got {length}")

    def _encoded(self, text: str) -> list[int]:
        """A turn of the user."""
        return [self._id(_BEGIN), *self.text(f"{text}{_END_OF_TURN}", add_special_tokens=False)["input_ids"]]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        raise NotImplementedError

    def image_codes(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Codes int64 ``[B, rows, columns]`` of the image tokenizer for token sequences ``[B, N]``, on the CPU."""
        free = self.layout(1, grid).forced[0].cpu() < 0
        return self.codes[tokens.cpu()[:, free]].view(len(tokens), *(grid or self.grid))

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``; one after the other, since a decoder of pixels takes more memory than one of tokens."""
        decoder = None if self.vqgan is None else self.vqgan.to(self.device).decoder
        if decoder is None:
            raise NotImplementedError(f"images: {self.missing_decoder}")
        codes = self.image_codes(tokens, grid).to(self.device)
        with torch.no_grad():
            return [picture for row in codes for picture in pictures(decoder(row[None]))]

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        if self.vqgan is None or self.vqgan.encoder is None:
            raise NotImplementedError(
                f"encode: this checkpoint of {self.name} has no image tokenizer: put {FILES[1]} of Chameleon's release into its folder, "
                "or name the file as from_pretrained(…, vqgan=…)"
            )
        encoder: Any = self.vqgan.to(self.device).encoder
        pixels = fitted_pixels(images, *(side * self.patch for side in self.grid)).to(self.device, encoder.dtype)
        with torch.no_grad():
            codes = torch.cat([encoder.encode(one[None], return_dict=True).image_tokens.cpu() for one in pixels])
        ids = torch.empty_like(self.codes).scatter_(0, self.codes, torch.arange(self.vocab_size))
        tokens = self.layout(len(images)).forced.cpu()
        tokens[tokens < 0] = ids[codes]
        return tokens


class AnoleAdapter(ChameleonAdapter):
    """Images of 512 × 512 pixels, 32 × 32 tokens; the end-of-image token that follows them is not decoded, for nothing depends on it.

    The unconditional branch is the beginning of a text, and of an image.
    """

    name = "anole"
    entries = ()
    defaults = SamplingDefaults(guidance_scale=3.0, temperature=0.7, top_p=0.9)

    def __init__(self, model: ChameleonForConditionalGeneration, processor: ChameleonProcessor | PreTrainedTokenizerBase, vqgan: VQGAN | None = None):
        super().__init__(model, processor, vqgan)
        self.grid = (cast(ChameleonVQVAEConfig, model.config.vq_config).resolution // self.patch,) * 2

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: there is one size."""
        return one_size(self.grid, self.patch, height, width)

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``."""
        begin = self._id(_BEGIN_IMAGE)
        return [[*(self._encoded(prompt) if prompt else [self._id(_BEGIN)]), begin] for prompt in prompts]

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``."""
        return self.grid if ids[-1] == self._id(_BEGIN_IMAGE) else None

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        return TokenLayout.grid(batch_size, *(grid or self.grid), device=self.device)


class LuminaMGPTAdapter(ChameleonAdapter):
    """Images of many shapes with about the area of a square: an end-of-line token behind every row, an end-of-image token behind all.

    Two tokens behind the begin-of-image token tell the height and the width, in units of two tokens. The model can write them itself; here they are
    what was asked for, and the caption says so, too. The unconditional branch sees only what comes from the begin-of-image token on.

    Args:
        model, processor, vqgan: see ``ChameleonAdapter``.
        target_size: side of the square in pixels; default: ``target_size`` of the configuration's ``sjd2``, or 768 as the checkpoint that is
            shown first.
    """

    name = "lumina_mgpt"
    defaults = SamplingDefaults(guidance_scale=3.0, top_k=2000)
    _structural = (_END_OF_LINE, _END_IMAGE)

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        processor: ChameleonProcessor | PreTrainedTokenizerBase,
        vqgan: VQGAN | None = None,
        target_size: int | None = None,
    ):
        super().__init__(model, processor, vqgan)
        entry = getattr(model.config, "sjd2", None) or {}
        #: Pixels that the size tokens count in.
        self.unit = 2 * self.patch
        self.target_size: int = target_size or entry.get("target_size") or 24 * self.unit
        if not isinstance(self.target_size, int) or self.target_size < self.unit or self.target_size % self.unit:
            raise ValueError(f"target_size: expected a multiple of {self.unit} pixels, got {self.target_size!r}")
        self.grid = self.configured_grid((self.target_size // self.patch,) * 2)

    def _entry(self) -> dict[str, Any]:
        return {**super()._entry(), "target_size": self.target_size}

    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths in pixels that the model was trained at, wide ones first.

        In units: of each width all heights from the first that would not fit beside one unit more of width, to the last whose area is at most the
        square's; neither side more than four times the other.
        """
        area = (self.target_size // self.unit) ** 2
        units = [(high, wide) for wide in range(area, 0, -1) for high in range(max(1, area // (wide + 1)), area // wide + 1)]
        return [(high * self.unit, wide * self.unit) for high, wide in units if max(high, wide) <= 4 * min(high, wide)]

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``; of one side alone the other becomes the longest that goes with it."""
        if height is None and width is None:
            return self.grid
        fitting = [size for size in self.sizes() if height in (None, size[0]) and width in (None, size[1])]
        if not fitting:
            asked = [(name, side) for name, side in (("height", height), ("width", width)) if side is not None]

            def distance(size: tuple[int, int]) -> float:
                return sum(abs(math.log(known / side)) for known, side in zip(size, (height, width), strict=True) if side is not None)

            high, wide = min(self.sizes(), key=distance)
            raise ValueError(
                f"{' and '.join(name for name, _ in asked)}: expected a size that the model was trained at for target_size {self.target_size}; "
                f"the nearest to {'×'.join(str(side) for _, side in asked)} is {high}×{wide} (height×width), and adapter.sizes() has all"
            )
        high, wide = max(fitting, key=lambda size: size[0] * size[1])
        return high // self.patch, wide // self.patch

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``: the request with the size in words, begin-of-image, and height and width as tokens."""
        rows, columns = grid or self.grid
        image = [self._id(_BEGIN_IMAGE), *(self._id(f"<reserved{8800 + side // 2:05d}>") for side in (rows, columns))]
        size = f"{columns * self.patch}x{rows * self.patch}"
        return [
            [*(self._encoded(f"Generate an image of {size} according to the following prompt:\n{prompt}") if prompt else []), *image]
            for prompt in prompts
        ]

    def requested_grid(self, ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """See ``SlicedCausalLM.requested_grid``: begin-of-image, and the tokens of height and width."""
        if len(ids) < 3 or ids[-3] != self._id(_BEGIN_IMAGE):
            return None
        sides = {token: int(name[9:-1]) - 8800 for name, token in self.vocabulary.items() if re.fullmatch(r"<reserved088\d\d>", name)}
        rows, columns = (2 * sides.get(token, 0) for token in ids[-2:])
        return (rows, columns) if rows > 0 and columns > 0 else None

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``."""
        line, end = self.vocab_size, self.vocab_size + 1
        return TokenLayout.grid(batch_size, *(grid or self.grid), row_end=(line,), end=(end,), device=self.device)


_VARIANTS: dict[str, type[ChameleonAdapter]] = {kind.name: kind for kind in (AnoleAdapter, LuminaMGPTAdapter)}
