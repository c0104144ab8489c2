"""The decode loop: one loop for every method."""

from .layout import TokenLayout
from .loop import DecodeResult, decode
from .model import DecodableModel, Prompt
from .presets import INITIALISATIONS, PRESETS, Preset, resolve_preset
from .rules import Rules
from .statistics import Progress, RowReport

__all__ = [
    "INITIALISATIONS",
    "PRESETS",
    "DecodableModel",
    "DecodeResult",
    "Preset",
    "Progress",
    "Prompt",
    "RowReport",
    "Rules",
    "TokenLayout",
    "decode",
    "resolve_preset",
]
