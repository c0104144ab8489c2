"""LlamaGen (2406.06525), text to image: a stock Llama over image tokens, behind projected features of a T5 encoder.

Its folder is written by ``sjd2 convert llamagen``: the Llama, and beside it ``caption.safetensors``, ``text_encoder`` and ``vq``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, JanusVQVAE, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerBase, T5EncoderModel

from ..decoding import TokenLayout
from .base import ImageRequest, SamplingDefaults
from .captions import clean_caption
from .causal_lm import SlicedCausalLM
from .loading import load_model
from .pixels import one_size, pictures
from .vq import codes_of, pixels_per_token

__all__ = ["CAPTION_FILE", "TEXT_FOLDER", "VQ_FOLDER", "CaptionProjection", "GridRotary", "LlamaGenAdapter"]

CAPTION_FILE, TEXT_FOLDER, VQ_FOLDER = "caption.safetensors", "text_encoder", "vq"


class GridRotary(nn.Module):
    """Rotary embedding by row and column, in the place of a Llama's own: half of a head's dimensions turn with either.

    The prompt has no positions at all: sine and cosine are 0 there, as in the published table. So no image token tells the inputs of a prompt
    apart by their keys, and these see each other evenly.

    Args:
        head_dim: dimensions of an attention head, a multiple of 4.
        base: of the frequencies.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"head_dim: expected a multiple of 4, got {head_dim}")
        self.head_dim, self.base = head_dim, base

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine ``[R, T, head_dim]`` in the dtype of ``x``.

        Args:
            x: anything of the dtype and on the device that the attention runs in.
            position_ids: int64 ``[3, R, T]``: where the image begins, and 1 + row and 1 + column counted from there; three equal ones, or
                ``[R, T]``, are an input of the prompt.
        """
        start, *cell = position_ids if position_ids.ndim == 3 else (position_ids,) * 3
        half = self.head_dim // 2
        dtype = torch.promote_types(x.dtype, torch.float32)  # no buffer: it would take on the weights' precision
        frequencies = self.base ** (-torch.arange(0, half, 2, dtype=dtype, device=x.device) / half)
        angles = torch.cat([(axis - start - 1)[..., None] * frequencies for axis in cell], -1).repeat(1, 1, 2)
        image = (cell[0] > start)[..., None]
        return (angles.cos() * image).to(x.dtype), (angles.sin() * image).to(x.dtype)


class CaptionProjection(nn.Module):
    """From a text encoder's features to inputs of the model, with the learned features ``unconditional [P, C]`` of no caption."""

    def __init__(self, features: int, width: int, prefix: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, width, bias=False), nn.Linear(width, width, bias=False)
        self.unconditional = nn.Parameter(torch.empty(prefix, features))

    @classmethod
    def load(cls, path: Path) -> CaptionProjection:
        """Read ``caption.safetensors``, in the dtype that it was stored in.

        Raises:
            OSError, RuntimeError: a file that is missing, or has other tensors.
        """
        state = load_file(path)
        with torch.device("meta"):
            module = cls(state["fc1.weight"].shape[1], state["fc1.weight"].shape[0], len(state["unconditional"]))
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, N, D]`` of features ``[B, N, C]``."""
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class LlamaGenAdapter(SlicedCausalLM):
    """Captions are cleaned as in training; what is longer than the P inputs of the model's prefix is cut off.

    The published model pads captions on the left with inputs that nothing sees, and its prefix has no positions: here a prompt is just as long
    as its caption. Ids of the vocabulary are those of the text encoder, and behind them P that stand for the unconditional features: the partner
    of a caption of n ids are the last n of those, since what the caption does not see its partner does not see either.

    Args:
        model: the Llama; its rotary embedding is replaced by :class:`GridRotary`.
        text: tokenizer of ``text_encoder``.
        text_encoder: frozen.
        caption: from its features to the model's inputs; frozen, in tuning too.
        vq: the tokenizer of images, in the dtype that it was stored in.

    Raises:
        ValueError: parts that do not fit each other.
    """

    model: LlamaForCausalLM
    name = "llamagen"
    entries = ("grid",)
    defaults = SamplingDefaults(guidance_scale=7.5, top_k=1000)

    def __init__(
        self, model: LlamaForCausalLM, text: PreTrainedTokenizerBase, text_encoder: T5EncoderModel, caption: CaptionProjection, vq: JanusVQVAE
    ):
        config: Any = model.config
        super().__init__(model, 0, config.vocab_size)
        codes, features = len(vq.quantize.embedding.weight), caption.fc1.in_features
        if codes != config.vocab_size:
            raise ValueError(f"vq: expected a codebook of the model's {config.vocab_size} ids, got {codes}")
        if text_encoder.config.d_model != features:
            raise ValueError(f"text_encoder: expected {features} features, which the caption's projection takes, got {text_encoder.config.d_model}")
        if caption.fc2.out_features != config.hidden_size:
            raise ValueError(f"caption: expected a projection to the model's {config.hidden_size} dimensions, got {caption.fc2.out_features}")
        if text.pad_token_id != 0:  # prompts are padded with it
            raise ValueError(f"text: expected a tokenizer whose padding has the id 0, got {text.pad_token_id}")
        model.model.rotary_emb = GridRotary(config.head_dim)
        self.text, self.text_encoder, self.caption, self.vq = text, text_encoder, caption, vq
        self._encoder_stored = text_encoder.dtype
        self._words, self._prefix = int(text_encoder.config.vocab_size), len(caption.unconditional)
        side = vq.config.num_patches
        self.grid = self.configured_grid((side, side))

    @classmethod
    def load(
        cls, folder: Path, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype | Literal["auto"], **options: Any
    ) -> LlamaGenAdapter:
        """Read a folder written by ``sjd2 convert llamagen``; ``options`` are for the Llama.

        Raises:
            OSError, ValueError: a file is missing, damaged, or does not fit the others.
        """
        for part in (CAPTION_FILE, TEXT_FOLDER, VQ_FOLDER):
            if not (folder / part).exists():
                raise FileNotFoundError(f"{part} is missing; `sjd2 convert llamagen` writes the whole folder")
        model, stored = load_model(LlamaForCausalLM, folder, config, device=device, dtype=dtype, **options)
        encoder, encoder_stored = cls._part(T5EncoderModel, folder / TEXT_FOLDER, device, dtype)
        vq, _ = cls._part(JanusVQVAE, folder / VQ_FOLDER, device, "auto")
        text = AutoTokenizer.from_pretrained(folder / TEXT_FOLDER, local_files_only=True)
        caption = CaptionProjection.load(folder / CAPTION_FILE).to(device, model.dtype)
        adapter = cls(model, text, encoder, caption, vq)
        adapter.stored_dtype, adapter._encoder_stored = stored, encoder_stored
        return adapter

    @staticmethod
    def _part(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, torch.dtype]:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        return load_model(kind, folder, config, device=device, dtype=dtype)

    @property
    def position_limit(self) -> int | None:
        """See ``DecodableModel.position_limit``: caption and image are bounded, and positions are cells."""
        return None

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``: its prompts are features of a text encoder, not ids.

        Raises:
            ValueError: always.
        """
        raise ValueError("model: LlamaGen's prompts are no ids of the model; use TextToImagePipeline.from_pretrained(folder)")

    def save_pretrained(self, folder: Path) -> None:
        """See ``Adapter.save_pretrained``."""
        torch.nn.Module.to(self.model, self.stored_dtype)
        self.model.save_pretrained(folder)
        save_file({name: value.to(self.stored_dtype) for name, value in self.caption.state_dict().items()}, folder / CAPTION_FILE)
        torch.nn.Module.to(self.text_encoder, self._encoder_stored)
        self.text_encoder.save_pretrained(folder / TEXT_FOLDER)
        self.text.save_pretrained(folder / TEXT_FOLDER)
        self.vq.save_pretrained(folder / VQ_FOLDER)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``."""
        for prompt in prompts:
            words = clean_caption(prompt)
            if not words:
                raise ValueError(f"prompt: expected a caption in words, got {prompt!r}")
            count = len(self.text(words)["input_ids"])
            if count > self._prefix:
                warnings.warn(f"prompt: the model reads {self._prefix} tokens of a caption and not the {count} of {prompt!r}", stacklevel=3)

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """See ``Adapter.grid_of``: there is one size."""
        return one_size(self.grid, pixels_per_token(self.vq), height, width)

    def _unconditional(self, count: int) -> list[int]:
        last = self._words + self._prefix
        return list(range(last - count, last))

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.prompt_ids``; of an empty prompt all unconditional ids."""
        return [
            self.text(clean_caption(prompt), truncation=True, max_length=self._prefix)["input_ids"] if prompt else self._unconditional(self._prefix)
            for prompt in prompts
        ]

    def embed_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Inputs ``[B, N, D]`` of rows of the text encoder's ids, or of unconditional ones; padding (id 0) may stand on either side."""
        projection = self.caption.fc1.weight
        ids = ids.to(projection.device)
        features = self.caption.unconditional[(ids - self._words).clamp(min=0)]
        word = (ids > 0) & (ids < self._words)
        rows = word.any(1)
        if rows.any():
            with torch.no_grad():
                encoded = self.text_encoder(input_ids=ids[rows], attention_mask=word[rows].long()).last_hidden_state
            features[rows] = encoded.to(features)
        return self.caption(features).to(self.device, self.dtype)

    def partner_ids(self, prompts: Sequence[str], negative_prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """See ``Adapter.partner_ids``; a negative prompt that is not empty is a caption of its own."""
        pairs = zip(self.prompt_ids(prompts), negative_prompts, strict=True)
        return [self.prompt_ids([negative])[0] if negative else self._unconditional(len(row)) for row, negative in pairs]

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """See ``Adapter.layout``; the axes are those of :class:`GridRotary`."""
        rows, columns = self.grid
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T.to(self.device)
        return replace(TokenLayout.grid(batch_size, rows, columns, device=self.device), places=torch.cat([torch.zeros_like(cells[:1]), 1 + cells]))

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """See ``Adapter.images``; one after the other, since a decoder of pixels takes more memory than one of tokens."""
        with torch.no_grad():
            return [pictures(self.vq.decode(row[None]))[0] for row in tokens.to(self.vq.device)]

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """See ``Adapter.encode``."""
        return codes_of(self.vq, images, self.grid)
