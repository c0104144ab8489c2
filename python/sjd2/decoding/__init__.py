"""The decode loop: one loop for every method."""

from .layout import TokenLayout
from .model import DecodableModel, Prompt
from .presets import INITIALISATIONS, PRESETS, Preset, resolve_preset
from .rules import Rules
from .run import DecodeResult, decode
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
