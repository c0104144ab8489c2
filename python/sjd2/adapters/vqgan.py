"""The image tokenizer of Chameleon's original release, a VQGAN (2012.09841): its encoder as Transformers has it, its decoder as Janus has one.

Weights are found by the names of the original release: ``encoder.…``, ``quant_conv.…``, ``quantize.embedding.weight``, ``post_quant_conv.…``,
``decoder.…``. Transformers keeps the same names, but for a decoder's levels, which Janus counts the other way round.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEVectorQuantizer
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

__all__ = ["VQGAN", "PixelDecoder", "read_vqgan"]

#: Where a model's folder may have the weights; the first is what is written.
FILES = ("vqgan.safetensors", "vqgan.ckpt")

#: Of names in a checkpoint of the whole model.
_IN_MODEL = "model.vqmodel."


class PixelDecoder(nn.Module):
    """Codes int64 ``[B, H, W]`` to pixels ``[B, 3, H·p, W·p]`` in [-1, 1]; p is 16 in the release.

    Raises:
        ValueError: a tokenizer that attends elsewhere than in its middle.
    """

    def __init__(self, config: ChameleonVQVAEConfig):
        super().__init__()
        if config.attn_resolutions or config.attn_type != "vanilla":
            raise ValueError(
                "vq_config: expected attention in the middle only (no attn_resolutions, attn_type vanilla), "
                f"got attn_resolutions {config.attn_resolutions} and attn_type {config.attn_type}"
            )
        fields = ("embed_dim", "num_embeddings", "latent_channels", "base_channels", "channel_multiplier", "num_res_blocks", "dropout")
        self.quantize = ChameleonVQVAEVectorQuantizer(config)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = JanusVQVAEDecoder(JanusVQVAEConfig(**{name: getattr(config, name) for name in fields}))
        self.decoder.up[0].attn = nn.ModuleList()  # Janus attends at its lowest level, too

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.decoder(self.post_quant_conv(self.quantize.embedding(codes).permute(0, 3, 1, 2)))


def _turned(name: str, levels: int) -> str:
    """A name of the release in Janus' order of levels, or the other way round."""
    return re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", name)


def _filled(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """``module``, made on the meta device, with its weights."""
    missing = sorted(module.state_dict().keys() - weights.keys())
    if missing:
        raise ValueError(f"vqgan: {len(missing)} tensors are missing, such as {missing[0]}")
    module.load_state_dict({name: weights[name] for name in module.state_dict()}, assign=True)
    return module


class VQGAN(nn.Module):
    """Pictures to codes and back, as far as there are weights.

    Args:
        config: the tokenizer's part of the model's configuration.
        weights: by their names in the release; others are ignored.
        dtype: to compute in.

    Attributes:
        encoder, decoder: ``None`` if ``weights`` has none.

    Raises:
        ValueError: an encoder or a decoder with tensors missing.
        RuntimeError: tensors that do not fit the configuration.
    """

    def __init__(self, config: ChameleonVQVAEConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.levels = len(config.channel_multiplier)
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        with torch.device("meta"):
            if "encoder.conv_in.weight" in weights:
                self.encoder = ChameleonVQVAE(config)
            if "decoder.conv_in.weight" in weights:
                self.decoder = PixelDecoder(config)
        if self.encoder is not None:
            self.encoder = _filled(self.encoder, weights)
        if self.decoder is not None:
            self.decoder = _filled(self.decoder, {_turned(name, self.levels): tensor for name, tensor in weights.items()})
        self.to(dtype).eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write all weights, by their names in the release."""
        weights = {} if self.encoder is None else self.encoder.state_dict()
        if self.decoder is not None:
            weights |= {_turned(name, self.levels): tensor for name, tensor in self.decoder.state_dict().items()}
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / FILES[0])


def _in_model(folder: Path) -> dict[str, torch.Tensor]:
    """What the weights of the whole model hold; copies of Anole in the format of Transformers have the decoder there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
        files = sorted({file for name, file in names.items() if name.startswith(_IN_MODEL)})
    else:
        files = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(_IN_MODEL)]  # noqa: SIM118 - it is no dictionary
            weights |= {name.removeprefix(_IN_MODEL): tensors.get_tensor(name) for name in names}
    return weights


def _in_file(file: Path) -> dict[str, torch.Tensor]:
    """What a file of the tokenizer alone holds."""
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"vqgan: {file} holds more than tensors, which is not read; save its state_dict as {FILES[0]}, or name a file that you trust: {error}"
        ) from error
    return content.get("state_dict", content)


def read_vqgan(config: ChameleonVQVAEConfig, folder: Path | None, file: str | Path | None = None, dtype: torch.dtype = torch.float32) -> VQGAN | None:
    """The tokenizer of a checkpoint; ``None`` if there are no weights of it.

    Args:
        config: the tokenizer's part of the model's configuration.
        folder: of the model. Its own weights are read, and ``vqgan.safetensors`` or ``vqgan.ckpt`` in it.
        file: in place of those; a ``.safetensors``, or what ``torch.load`` reads.
        dtype: to compute in.

    Raises:
        FileNotFoundError: no such file.
        ValueError: tensors are missing, or a file holds more than tensors.

    Example:
        >>> from pathlib import Path
        >>> from transformers import ChameleonVQVAEConfig
        >>> read_vqgan(ChameleonVQVAEConfig(), Path("."), None) is None
        True
    """
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"vqgan: expected a file, got {str(file)!r}")
    if file is None and folder is not None:
        file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    weights = {} if folder is None else _in_model(folder)
    if file is not None:
        weights |= _in_file(Path(file))
    if "encoder.conv_in.weight" not in weights and "decoder.conv_in.weight" not in weights:
        if file is not None:
            raise ValueError(f"vqgan: expected encoder.conv_in.weight or decoder.conv_in.weight in {file}, found neither")
        return None
    return VQGAN(config, weights, dtype)
