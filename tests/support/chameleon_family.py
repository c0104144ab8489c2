"""Anole and Lumina-mGPT as tests load them, by name."""

from __future__ import annotations

import torch

from sjd2 import TextToImagePipeline
from support.chameleon import PATCH

PROMPTS = ["a cat", "two red dogs in the snow"]
SEEDS = [3, 2**40]
#: Lumina-mGPT's side of the square: two units, four tokens.
TARGET = 4 * PATCH
VARIANTS = ["anole", "lumina_mgpt"]


def load(folder, name, **options):
    size = {"target_size": TARGET} if name == "lumina_mgpt" else {}
    return TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64, **size, **options)
