"""What an adapter provides beyond the loop's needs: prompts in, images out, and the model's usual settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ..cache import RaggedCache
from ..decoding import DecodableModel, Prompt, TokenLayout
from ..denoising import Denoising

if TYPE_CHECKING:
    from .causal_lm import SlicedCausalLM

__all__ = ["Adapter", "ImageRequest", "SamplingDefaults"]


@dataclass(frozen=True)
class SamplingDefaults:
    """The settings a model is normally sampled with; see ``LogitsProcessing.create``. ``negative_prompt``: what guidance steers away from."""

    guidance_scale: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str = ""


@dataclass(frozen=True)
class ImageRequest:
    """What a call of ``generate`` asks an image model for.

    Attributes:
        model: over the image ids.
        layout: of the images' tokens, a row per prompt.
        negative_ids: rows of ids for the unconditional branch, where the call gives none but is guided; ``None``: the last id of each prompt.
        own_ids: the image ids are no ids of the prompt's vocabulary; what ``generate`` returns then are image ids alone.
    """

    model: SlicedCausalLM
    layout: TokenLayout
    negative_ids: list[list[int]] | None = None
    own_ids: bool = False


class Adapter(DecodableModel, Protocol):
    """A text-to-image model as the pipeline and tuning see it.

    A ``grid`` argument is an image's size in tokens, (rows, columns); ``None`` is the attribute.
    """

    #: Name as stored in a configuration.
    name: str
    defaults: SamplingDefaults
    #: Levels, timestep tokens and normalisation that the model was tuned with (``sjd2.training``); ``None``: it was not.
    denoising: Denoising | None
    #: What is trained, but for :meth:`frozen_parts`; every logit comes from it.
    model: PreTrainedModel
    #: Rows and columns of tokens that images have where nothing else is asked for.
    grid: tuple[int, int]

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """The images that prompts of a call of ``generate`` ask for; ``None``: none, or of a layout that cannot be told from them.

        Args:
            model: as Transformers loaded it.
            ids: of each prompt, without padding.
            inputs: the call's other arguments for the model; what the adapter makes use of it takes out.
            processor: of the model, if the caller gave it.

        Raises:
            ValueError: inputs that contradict each other.
        """
        ...

    @property
    def missing_decoder(self) -> str | None:
        """Why tokens cannot become pixels here, and what would help; ``None``: :meth:`images` makes pictures."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the model."""
        ...

    def frozen_parts(self) -> list[nn.Module]:
        """Modules in ``model`` that tuning leaves alone, since no logit of an image token depends on them: image tokenizers and the like."""
        ...

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Look at all prompts of a call before the first of them is decoded; warn of what the model will not understand.

        Raises:
            ValueError: an empty prompt, or one that is too long.
        """
        ...

    def grid_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The grid of an image of ``height`` × ``width`` pixels; ``None``: as the model usually has it.

        Raises:
            ValueError: a size that the model does not make.
        """
        ...

    def prompt_ids(self, prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """Ids of each prompt as the model is fed it, up to the one that predicts the first image token; of the whole vocabulary, unpadded.

        An empty prompt is what the model was trained on where a caption was left out.
        """
        ...

    def embed_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings ``[B, N, D]`` of ids of the whole vocabulary."""
        ...

    def logits(
        self,
        inputs_embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: RaggedCache | None = None,
        *,
        outputs: slice = slice(None),
    ) -> torch.Tensor:
        """Logits ``[R, O, V]`` of ``inputs_embeds [R, T, D]`` at ``positions [R, T]`` under a bool ``mask [R, 1, T, keys]``.

        ``outputs`` chooses O of the T columns.
        """
        ...

    def compile(self, **options: Any) -> None:
        """Let ``torch.compile``, with these options, compile the forward over a window. The model itself stays as it is."""
        ...

    def partner_ids(self, prompts: Sequence[str], negative_prompts: Sequence[str], grid: tuple[int, int] | None = None) -> list[list[int]]:
        """Ids of guidance's other branch for each prompt, as :meth:`prompt_ids` gives them; an empty negative prompt is none."""
        ...

    def prompt(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, grid: tuple[int, int] | None = None) -> Prompt:
        """Input embeddings of B checked prompts, followed by those of their unconditional partners if given (for guidance)."""
        ...

    def layout(self, batch_size: int, grid: tuple[int, int] | None = None) -> TokenLayout:
        """The token sequence of ``batch_size`` images."""
        ...

    def images(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """Pictures of decoded token sequences ``[B, N]``.

        Raises:
            NotImplementedError: there is a :attr:`missing_decoder`, which the message tells.
        """
        ...

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Token sequences int64 ``[B, N]`` of pictures, on the CPU.

        A picture of another size or shape is cropped to its centre and resized (Lanczos) to what the model usually makes.

        Raises:
            NotImplementedError: pictures cannot become tokens here; the message says what would help.
        """
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write what ``load_adapter`` reads; the weights take on the dtype that they were stored in, the model with them."""
        ...
