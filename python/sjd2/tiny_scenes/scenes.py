"""TinyScenes drawn on the fly: a photographed garment, tinted and placed on a coloured background, with its caption.

No two scenes repeat, so a model trained on them cannot memorise token strings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .prompts import COLOURS, GARMENTS, HELD_OUT_PAIRS, caption

__all__ = ["SIZE", "SceneBatch", "SceneSampler"]

#: Height and width of a scene in pixels.
SIZE = 32
_PHOTO = 28


@dataclass(frozen=True)
class SceneBatch:
    """``pixels [N, 3, 32, 32]`` float32 in [-1, 1], ``captions`` (N strings), and what they show as ``int64 [N]`` indices."""

    pixels: torch.Tensor
    captions: list[str]
    garment: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor


def _pairs(held_out: bool) -> torch.Tensor:
    """``bool [garments, colours]``: which pairs may be drawn."""
    table = torch.tensor([[(garment, colour) in HELD_OUT_PAIRS for colour in COLOURS] for garment in GARMENTS])
    return table if held_out else ~table


class SceneSampler:
    """Draws scene batches; batch ``index`` of a sampler is always the same, so a resumed training sees the same stream.

    Args:
        photos: ``uint8 [N, 28, 28]``.
        labels: ``int64 [N]``, indices into ``GARMENTS``.
        held_out: draw only the held-out (garment, colour) pairs instead of only the others.
        full_captions: name every part in every caption. Otherwise one caption in ten is empty (for guidance), one in
            twenty leaves out the background and one in twenty the garment's colour.
        seed: of the stream.
    """

    def __init__(self, photos: torch.Tensor, labels: torch.Tensor, *, held_out: bool = False, full_captions: bool = False, seed: int = 0):
        self.photos, self.labels, self.seed, self.full_captions = photos, labels, seed, full_captions
        self.pairs = _pairs(held_out).float()
        self.palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)

    def batch(self, index: int, size: int) -> SceneBatch:
        """Batch number ``index`` of ``size`` scenes."""
        generator = torch.Generator().manual_seed((self.seed << 40) + index)

        def randint(high: int) -> torch.Tensor:
            return torch.randint(high, (size,), generator=generator)

        picked = randint(len(self.photos))
        garment = self.labels[picked]
        colour = torch.multinomial(self.pairs[garment], 1, generator=generator).squeeze(1)
        background = (colour + 1 + randint(len(COLOURS) - 1)) % len(COLOURS)
        pixels = self._draw(self.photos[picked], colour, background, randint(5), randint(5), randint(2).bool())
        return SceneBatch(pixels, self._captions(garment, colour, background, randint(20)), garment, colour, background)

    def _draw(
        self,
        photos: torch.Tensor,
        colour: torch.Tensor,
        background: torch.Tensor,
        top: torch.Tensor,
        left: torch.Tensor,
        flip: torch.Tensor,
    ) -> torch.Tensor:
        """Composite the photos: their brightness shades the tint, and its rise from zero is the garment's edge."""
        photos = torch.where(flip[:, None, None], photos.flip(2), photos)
        size = len(photos)
        canvas = torch.zeros(size, SIZE, SIZE)
        rows = (top[:, None] + torch.arange(_PHOTO))[:, :, None]
        columns = (left[:, None] + torch.arange(_PHOTO))[:, None, :]
        canvas[torch.arange(size)[:, None, None], rows, columns] = photos.float() / 255
        grey = canvas[:, None]
        # Photos fade to black at the border: coverage rises three times as fast as brightness.
        coverage = (3 * grey).clamp(max=1)
        # A small highlight keeps the folds of a black garment visible.
        tint = self.palette[colour][:, :, None, None] * (0.5 + 0.5 * grey) + 24 * grey
        scene = coverage * tint + (1 - coverage) * self.palette[background][:, :, None, None]
        return scene.clamp(0, 255) / 127.5 - 1

    def _captions(self, garment: torch.Tensor, colour: torch.Tensor, background: torch.Tensor, form: torch.Tensor) -> list[str]:
        names = list(COLOURS)
        captions = []
        for g, c, b, f in zip(garment.tolist(), colour.tolist(), background.tolist(), form.tolist(), strict=True):
            if self.full_captions or f >= 4:
                captions.append(caption(GARMENTS[g], names[c], names[b]))
            elif f >= 2:
                captions.append("")
            else:
                captions.append(caption(GARMENTS[g], names[c] if f else None, None if f else names[b]))
        return captions
