"""CLIP-Score: how well a picture fits its prompt, ``max(100·cos(E_image, E_text), 0)`` (Hessel et al., 2104.08718), by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPModel, CLIPProcessor

from .pictures import as_bytes, require_torchmetrics

__all__ = ["ClipScore"]


class _Embeddings(nn.Module):
    """A CLIP model whose features are tensors, as torchmetrics expects; Transformers 5 returns them in an output."""

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._tensor(self.model.get_image_features(pixel_values=pixel_values))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self._tensor(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

    @staticmethod
    def _tensor(found: Any) -> torch.Tensor:
        return found if isinstance(found, torch.Tensor) else found.pooler_output


class _Whole:
    """A processor that cuts a long text before its end token; cut behind it, the text would have no embedding of its own."""

    def __init__(self, processor: CLIPProcessor, length: int):
        self._processor, self._length = processor, length

    def __call__(self, **inputs: Any) -> Any:
        limits = {"truncation": True, "max_length": self._length} if "text" in inputs else {}
        return self._processor(**inputs, **limits)


class ClipScore:
    """CLIP-Score of pictures, one value each.

    Args:
        model: folder or hub name of a CLIP model; scores of different models are not comparable.

    Raises:
        ImportError: torchmetrics is not installed; the message names the extra that brings it.
        OSError: there is no such model, or it cannot be fetched.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu"):
        require_torchmetrics()
        from torchmetrics.multimodal.clip_score import CLIPScore

        self._device = torch.device(device)
        embeddings = _Embeddings(CLIPModel.from_pretrained(model)).eval().requires_grad_(False)
        text: Any = embeddings.config.text_config
        loaded: Any = embeddings, _Whole(CLIPProcessor.from_pretrained(model), text.max_position_embeddings)
        self._metric = CLIPScore(model_name_or_path=lambda: loaded).to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Scores between 0 and 100. A prompt longer than the model's text is cut."""
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            self._metric.reset()
            self._metric.update(as_bytes([image]).to(self._device), [prompt])
            scores.append(float(self._metric.compute()))
        return scores
