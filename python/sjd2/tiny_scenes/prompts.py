"""What a TinyScenes caption can say: the colours, the garments, the grammar, and the pairs held out of training."""

from __future__ import annotations

import random

__all__ = [
    "COLOURS",
    "GARMENTS",
    "HELD_OUT_PAIRS",
    "caption",
    "held_out_prompts",
    "parse_prompt",
    "training_prompts",
]

# sRGB values. The order is part of the data set: scenes draw colours by index.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (244, 244, 240),
    "black": (30, 30, 34),
    "red": (214, 38, 40),
    "orange": (247, 138, 28),
    "yellow": (250, 214, 48),
    "green": (44, 150, 62),
    "teal": (20, 156, 160),
    "blue": (38, 82, 204),
    "purple": (124, 58, 178),
    "pink": (246, 140, 188),
    "gray": (136, 138, 142),
    "brown": (126, 78, 44),
}

# In the order of Fashion-MNIST's labels 0..9.
GARMENTS: tuple[str, ...] = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)


def _held_out_pairs() -> frozenset[tuple[str, str]]:
    """Two colours per garment, every colour at least once, spread by a stride that is coprime to 12."""
    colours = list(COLOURS)
    return frozenset((garment, colours[(5 * (2 * g + k)) % len(colours)]) for g, garment in enumerate(GARMENTS) for k in range(2))


#: 20 of the 120 (garment, colour) pairs. Training never sees them, so a picture of one shows composition, not recall.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = _held_out_pairs()


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(garment: str, colour: str | None = None, background: str | None = None) -> str:
    """The caption of a scene, e.g. ``a red coat on a yellow background``; parts that are ``None`` are left out."""
    words = f"{colour} {garment}" if colour else garment
    text = f"{_article(words)} {words}"
    return f"{text} on {_article(background)} {background} background" if background else text


def _captions(held_out: bool) -> list[str]:
    """Captions of all held-out pairs, or of all others, on every other background colour."""
    return [
        caption(garment, colour, background)
        for garment in GARMENTS
        for colour in COLOURS
        if ((garment, colour) in HELD_OUT_PAIRS) == held_out
        for background in COLOURS
        if background != colour
    ]


def training_prompts() -> list[str]:
    """Captions of the pairs that training sees, on every other background colour: 1100 prompts."""
    return _captions(held_out=False)


def held_out_prompts(count: int | None = None) -> list[str]:
    """Captions of held-out pairs on every other background colour: 220 prompts, or the first ``count`` of them.

    The order is a fixed shuffle, so that any prefix covers garments and colours alike.
    """
    prompts = _captions(held_out=True)
    random.Random(0).shuffle(prompts)
    return prompts if count is None else prompts[:count]


def parse_prompt(prompt: str) -> tuple[str | None, str | None, str | None]:
    """``(garment, colour, background)`` named by a caption of this grammar; ``None`` for a part that it does not name."""
    words = prompt.lower().split()
    garment_at = next((i for i, word in enumerate(words) if word in GARMENTS), None)
    if garment_at is None:
        return None, None, None
    colour = next((word for word in words[:garment_at] if word in COLOURS), None)
    background = next((word for word in words[garment_at:] if word in COLOURS), None)
    return words[garment_at], colour, background
