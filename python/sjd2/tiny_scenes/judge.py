"""Judging TinyScenes pictures: the background by its pixels, the garment by a small classifier trained on real scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .likelihood import sequence_statistics
from .prompts import COLOURS, GARMENTS, parse_prompt

if TYPE_CHECKING:  # the adapter loads models; judging one needs only what it offers
    from ..adapters.tiny_scenes import TinyScenesAdapter

__all__ = ["GarmentClassifier", "Judge", "background_colour", "garment_colour"]


class GarmentClassifier(nn.Module):
    """Logits ``[N, 10]`` over ``GARMENTS`` from pixels ``[N, 3, 32, 32]`` in [-1, 1]."""

    WEIGHTS_NAME = "judge.safetensors"

    def __init__(self, width: int = 32):
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1, stride=2), nn.SiLU()]

        self.features = nn.Sequential(*block(3, width), *block(width, 2 * width), *block(2 * width, 4 * width))
        self.head = nn.Linear(4 * width * 16, len(GARMENTS))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of ``pixels``."""
        return self.head(self.features(pixels).flatten(1))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as float16 safetensors."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: value.to(torch.float16).contiguous() for name, value in self.state_dict().items()}, Path(folder) / self.WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GarmentClassifier:
        """Read what :meth:`save_pretrained` wrote; weights are float32 in memory."""
        model = cls()
        model.load_state_dict({name: value.float() for name, value in load_file(Path(folder) / cls.WEIGHTS_NAME).items()})
        return model.eval().requires_grad_(False)


def _nearest_colour(rgb: torch.Tensor) -> torch.Tensor:
    """Index into ``COLOURS`` of the nearest palette entry; ``rgb [..., 3]`` in [0, 255]."""
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=rgb.device)
    return torch.cdist(rgb.float(), palette).argmin(-1)


def background_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Index into ``COLOURS``, ``int64 [N]``: the median pixel of the left and right edges of ``pixels [N, 3, 32, 32]``."""
    edges = torch.cat([pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
    return _nearest_colour((edges.median(dim=2).values + 1) * 127.5)


def garment_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Index into ``COLOURS``, ``int64 [N]``, of the most frequent palette colour that is not the background's.

    Shading darkens a garment's pixels, so each is compared with every tint at the shades that scenes use.
    """
    rgb = (pixels.flatten(2).transpose(1, 2) + 1) * 127.5
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=rgb.device)
    grey = torch.linspace(0.3, 1, 8, device=rgb.device)
    shades = palette[:, None] * (0.5 + 0.5 * grey[:, None]) + 24 * grey[:, None]
    nearest = torch.cdist(rgb.float(), shades.flatten(0, 1)).argmin(-1) // len(grey)
    votes = rgb.new_zeros(len(rgb), len(palette)).scatter_add_(1, nearest, torch.ones_like(nearest, dtype=torch.float32))
    flat = _nearest_colour(rgb)
    background = background_colour(pixels)
    # Pixels of the flat background vote for nothing.
    votes -= torch.zeros_like(votes).scatter_add_(1, nearest, (flat == background[:, None]).float())
    return votes.scatter(1, background[:, None], -1.0).argmax(1)


class Judge:
    """Measures of pictures by the embedded model, one value per picture."""

    def __init__(self, adapter: TinyScenesAdapter, folder: str | Path):
        self.adapter, self.classifier = adapter, GarmentClassifier.from_pretrained(folder)

    def __call__(self, prompts: list[str], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of the pictures of ``tokens [N, 256]``, made of ``prompts``: 1 where right, 0 where wrong; NLL in nats per token."""
        adapter = self.adapter
        pixels = adapter.pixels(tokens).cpu()
        wanted = [parse_prompt(prompt) for prompt in prompts]
        colours = list(COLOURS)

        def right(found: torch.Tensor, part: int, names: list[str]) -> torch.Tensor:
            return torch.tensor([float(names[index] == want[part]) for index, want in zip(found.tolist(), wanted, strict=True)])

        nll = [
            sequence_statistics(adapter.model, adapter.text, prompts[i : i + 64], tokens[i : i + 64].to(adapter.device))[0]
            for i in range(0, len(prompts), 64)
        ]
        return {
            "background_right": right(background_colour(pixels), 2, colours),
            "colour_right": right(garment_colour(pixels), 1, colours),
            "garment_right": right(self.classifier(pixels).argmax(1), 0, list(GARMENTS)),
            "nll": torch.cat(nll).cpu(),
        }
