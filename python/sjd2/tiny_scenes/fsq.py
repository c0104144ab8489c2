"""The image tokenizer of TinyScenes: a small convolutional autoencoder with finite scalar quantisation (2309.15505).

32×32 pixels become a 16×16 grid of codes; FSQ with levels [8, 5, 5, 5] has 1000 of them and no codebook to learn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

__all__ = ["FSQConfig", "FSQTokenizer"]


@dataclass(frozen=True)
class FSQConfig:
    """Shape of the autoencoder: ``levels`` per code dimension, pixels per code side, channels and residual blocks."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    patch: int = 2
    channels: int = 96
    encoder_blocks: int = 3
    decoder_blocks: int = 4


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class FSQTokenizer(nn.Module):
    """Pixels to codes and back.

    Pixels are float ``[N, 3, H, W]`` in [-1, 1]; codes are int64 ``[N, H/patch, W/patch]`` in ``[0, codebook_size)``.
    """

    levels: torch.Tensor
    strides: torch.Tensor

    CONFIG_NAME = "fsq_config.json"
    WEIGHTS_NAME = "fsq.safetensors"

    def __init__(self, config: FSQConfig | None = None):
        super().__init__()
        config = config or FSQConfig()
        self.config = config
        width, pixels, dims = config.channels, 3 * config.patch**2, len(config.levels)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(pixels, width, 3, padding=1),
            *(_Residual(width) for _ in range(config.encoder_blocks)),
            nn.Conv2d(width, dims, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dims, width, 3, padding=1),
            *(_Residual(width) for _ in range(config.decoder_blocks)),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(config.patch),
        )
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("strides", torch.cat([torch.ones(1, dtype=torch.long), levels.cumprod(0)[:-1]]), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Number of codes: the product of the levels."""
        return int(torch.tensor(self.config.levels).prod())

    def _column(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None]

    def quantise(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent ``[N, dims, h, w]`` to level indices of the same shape, with the gradient of the unrounded value.

        A sigmoid maps each dimension to (-0.5, level - 0.5), so that every level has the same width before rounding,
        odd and even level counts alike.
        """
        levels = self._column(self.levels).to(latent.dtype)
        scaled = torch.sigmoid(latent) * levels - 0.5
        index = torch.minimum(scaled.round().clamp(min=0), levels - 1)
        return scaled + (index - scaled).detach()

    def _centred(self, index: torch.Tensor) -> torch.Tensor:
        """Level indices to the decoder's input in [-1, 1]."""
        return 2 * index / (self._column(self.levels) - 1).to(index.dtype) - 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Reconstruction of ``pixels``, differentiable through the quantisation."""
        return self.decoder(self._centred(self.quantise(self.encoder(pixels).float())))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Codes of ``pixels``."""
        index = self.quantise(self.encoder(pixels).float()).long()
        return (index * self._column(self.strides)).sum(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] of ``codes``."""
        index = codes[:, None] // self._column(self.strides) % self._column(self.levels)
        return self.decoder(self._centred(index.to(next(self.parameters()).dtype))).clamp(-1, 1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the configuration and the weights (float16: half the download, no visible difference)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.CONFIG_NAME).write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file({name: value.to(torch.float16).contiguous() for name, value in self.state_dict().items()}, folder / self.WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FSQTokenizer:
        """Read what :meth:`save_pretrained` wrote; weights are float32 in memory.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or does not fit the configuration.
        """
        folder = Path(folder)
        for name in (cls.CONFIG_NAME, cls.WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"image tokenizer: expected {name} in {folder}, found none")
        try:
            fields = json.loads((folder / cls.CONFIG_NAME).read_text())
            model = cls(FSQConfig(**{**fields, "levels": tuple(fields["levels"])}))
            state = load_file(folder / cls.WEIGHTS_NAME)
            model.load_state_dict({name: value.float() for name, value in state.items()})
        except Exception as error:  # safetensors, json and load_state_dict each raise their own kinds
            raise ValueError(f"image tokenizer: {folder}: unreadable weights or configuration: {error}") from error
        return model.eval().requires_grad_(False)
