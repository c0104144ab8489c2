"""sjd2: speculative Jacobi decoding of autoregressive image models, exact where it says exact."""

from ._version import __version__
from .adapters import EMBEDDED_MODEL, load_adapter
from .decoding import PRESETS, Preset, Progress, decode, resolve_preset
from .generation import GenerateOutput, generate
from .pipeline import ImageReport, PipelineOutput, TextToImagePipeline

__all__ = [
    "EMBEDDED_MODEL",
    "PRESETS",
    "GenerateOutput",
    "ImageReport",
    "PipelineOutput",
    "Preset",
    "Progress",
    "TextToImagePipeline",
    "__version__",
    "decode",
    "generate",
    "load_adapter",
    "resolve_preset",
]
