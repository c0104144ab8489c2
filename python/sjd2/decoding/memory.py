"""What a run will need beside the weights, before it begins: an estimate, so that too large a batch is an error with a way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .model import DecodableModel
from .presets import Preset

__all__ = ["Need", "available", "check_memory", "fits"]


@dataclass(frozen=True)
class Need:
    """Bytes per image that is decoded: the cache, logits of two forwards, and what is alive inside one forward."""

    cache: int
    logits: int
    forward: int

    @classmethod
    def of(cls, model: DecodableModel, *, guided: bool, columns: int, inputs: int, window: int) -> Need:
        """Of a model with ``columns`` of cache per model row, forwards of at most ``inputs`` inputs, and windows of ``window`` slots."""
        branches = 2 if guided else 1
        logits = window * model.vocab_size * model.item_bytes
        # The mask: a byte for every input and column, and as a bias in the model's dtype where attention needs one.
        masks = inputs * columns * (1 + model.item_bytes)
        return cls(branches * columns * model.column_bytes, 2 * branches * logits, branches * (inputs * model.input_bytes + masks))

    @classmethod
    def of_run(cls, model: DecodableModel, preset: Preset, *, guided: bool, prompt: int, count: int) -> Need:
        """Of images of ``count`` tokens behind ``prompt`` inputs at most, decoded by ``preset``."""
        timesteps = 0 if preset.denoising is None else preset.denoising.timestep_tokens(preset.window)
        inputs = preset.window + timesteps
        return cls.of(model, guided=guided, columns=prompt - 1 + count + inputs, inputs=max(inputs, prompt - 1), window=preset.window)

    @property
    def total(self) -> int:
        """All of it."""
        return self.cache + self.logits + self.forward


def available(device: torch.device) -> int | None:
    """Bytes that PyTorch can still get on a device; ``None`` if nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    facts = Path("/proc/meminfo")
    if device.type == "cpu" and facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def fits(need: Need, batch_size: int, device: torch.device) -> bool:
    """Whether so many images have room together, as far as anyone knows."""
    room = available(device)
    return room is None or need.total * batch_size <= room


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def check_memory(need: Need, batch_size: int, device: torch.device) -> None:
    """Refuse a batch that has no room.

    Raises:
        MemoryError: with what is needed, what there is, and the largest batch that fits.
    """
    if fits(need, batch_size, device):
        return
    room = available(device) or 0
    fitting = room // need.total
    way_out = f"batch_size {fitting} would fit" if fitting else "not even one fits; a smaller window, a smaller image, or no guidance takes less"
    parts = ", ".join(f"{name} {_gibibytes(value * batch_size)}" for name, value in vars(need).items())
    raise MemoryError(
        f"batch_size: {batch_size} images together need about {_gibibytes(need.total * batch_size)} beside the weights ({parts}), "
        f"{device} has {_gibibytes(room)}: {way_out}"
    )
