"""What families share that Transformers has a model class and a processor of: a folder holds both, and an adapter is made of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel

from .base import ImageRequest
from .causal_lm import SlicedCausalLM
from .loading import load_model

__all__ = ["ProcessorModel", "check_processor"]


def check_processor(processor: Any, kind: str, names: Sequence[str]) -> None:
    """Refuse what is given for a processor and is none.

    Raises:
        ValueError: it lacks one of the attributes ``names``, which a processor of the class ``kind`` has.
    """
    if not all(hasattr(processor, name) for name in names):
        raise ValueError(f"processor: expected the model's {kind}, got {type(processor).__name__}")


class ProcessorModel(SlicedCausalLM):
    """A subclass is made of ``(model, processor)``, and names the classes of both.

    Attributes:
        model_class: of Transformers.
        processor_class: its name, and ``processor_parts`` attributes that it has.
    """

    model_class: ClassVar[Any]
    processor_class: ClassVar[str]
    processor_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "image_processor")
    processor: Any

    def __init__(self, model: PreTrainedModel, processor: Any, image_id_start: int, vocab_size: int, structural_ids: Sequence[int] = ()):
        super().__init__(model, image_id_start, vocab_size, structural_ids)
        self.processor = processor

    @classmethod
    def checked(cls, processor: Any) -> Any:
        """``processor``.

        Raises:
            ValueError: something else.
        """
        check_processor(processor, cls.processor_class, cls.processor_parts)
        return processor

    @classmethod
    def requested(cls, model: Any, ids: Sequence[Sequence[int]], inputs: dict[str, Any], processor: Any = None) -> ImageRequest | None:
        """See ``Adapter.requested``."""
        return super().requested(model, ids, inputs, None if processor is None else cls.checked(processor))

    @classmethod
    def load(cls, folder: Path, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype | Literal["auto"], **options: Any) -> Self:
        """Read a checkpoint in the format of Transformers, with its processor.

        Raises:
            OSError, ValueError: a file is missing, damaged, or does not fit the configuration.
        """
        model, stored = load_model(cls.model_class, folder, config, device=device, dtype=dtype, **options)
        make: Any = cls
        adapter = make(model, AutoProcessor.from_pretrained(cls.processor_folder(folder), local_files_only=True))
        adapter.stored_dtype = stored
        return adapter

    @classmethod
    def processor_folder(cls, folder: Path) -> Path:
        """Where the processor of the model in ``folder`` lies."""
        return folder

    def save_pretrained(self, folder: Path) -> None:
        """See ``Adapter.save_pretrained``."""
        nn.Module.to(self.model, self.stored_dtype)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ``Adapter.check_prompts``; too long is what leaves no room for an image, which decoding finds."""
        text = self.processor.tokenizer
        markers = set(text.all_special_ids) - {text.unk_token_id}
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("prompt: expected a caption, got an empty string")
            found = markers.intersection(text(prompt, add_special_tokens=False)["input_ids"])
            if found:
                named = ", ".join(map(str, text.convert_ids_to_tokens(sorted(found))))
                raise ValueError(f"prompt: expected text, got one with the model's own markers in it ({named}): {prompt[:60]!r}")
