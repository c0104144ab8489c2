"""The Fréchet distance between pictures and references (Heusel et al., 1706.08500), by torchmetrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import nn

from .features import EffNetLite0, VisionModel
from .pictures import as_bytes, require_torchmetrics

__all__ = ["FrechetDistance"]


class FrechetDistance:
    """Distance of sets of pictures to one set of references.

    Args:
        features: ``inception``: the FID, on the weights that torch-fidelity fetches or those in ``inception_weights``; ``effnet``:
            EfficientNet-Lite0, which needs no download; or the folder or hub name of a vision model of Transformers. Distances on different features,
            or with other numbers of pictures, are not comparable.
        inception_weights: file of Inception's weights as torch-fidelity publishes them.

    Raises:
        ImportError: the ``eval`` extra is not installed.
        OSError: there is no such model, or it cannot be fetched.
        ValueError: weights for features other than Inception's.
    """

    def __init__(self, features: str = "inception", *, inception_weights: str | None = None, device: torch.device | str = "cpu"):
        require_torchmetrics()
        from torchmetrics.image.fid import FrechetInceptionDistance

        if inception_weights is not None and features != "inception":
            raise ValueError(f"inception_weights: expected none for the features of {features}, got {inception_weights}")
        network: int | nn.Module = 2048
        if features == "effnet":
            network = EffNetLite0()
        elif features != "inception":
            network = VisionModel(features)
        self._device = torch.device(device)
        try:
            metric = FrechetInceptionDistance(network, reset_real_features=False, feature_extractor_weights_path=inception_weights)
        except ModuleNotFoundError as error:
            raise ImportError('torch-fidelity is not installed, and Inception comes with it: pip install "sjd2-kernels[eval]"') from error
        self._metric = metric.to(self._device)

    @torch.inference_mode()
    def add_references(self, references: Iterable[torch.Tensor]) -> None:
        """Take in references, uint8 ``[N, 3, H, W]`` at a time."""
        for pictures in references:
            self._metric.update(pictures.to(self._device), real=True)

    @torch.inference_mode()
    def add(self, images: Sequence[Image.Image]) -> None:
        """Take in pictures."""
        self._metric.update(as_bytes(images).to(self._device), real=False)

    def distance(self) -> float:
        """Of the pictures since the last call, at least 2; they are forgotten, the references are not."""
        value = float(self._metric.compute())
        self._metric.reset()
        return value
