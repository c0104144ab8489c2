"""Reading a model from a folder, the same way for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

__all__ = ["load_model"]


def load_model(
    kind: Any,
    folder: Path,
    config: PretrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype | Literal["auto"],
    optional: str | None = None,
    **options: Any,
) -> tuple[Any, torch.dtype]:
    """A frozen model in evaluation mode, and the dtype that its weights are stored in.

    Args:
        kind: a class of Transformers with ``from_pretrained``.
        optional: name of a module that checkpoints may come without; the model has none then.
        options: of ``from_pretrained``: ``device_map``, ``tp_plan``, ``quantization_config`` and so on. With those the model lies where they put it,
            and not on ``device``.

    Raises:
        OSError, ValueError: a file is missing, damaged, or does not fit the configuration.
    """
    model, report = kind.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True, **options)
    missing = set(report["missing_keys"])
    if optional is not None:
        owner, _, name = optional.rpartition(".")
        tensors = {f"{optional}.{tensor}" for tensor in model.get_submodule(optional).state_dict()}
        if tensors <= missing:
            missing -= tensors
            delattr(model.get_submodule(owner), name)  # what it has is random
    if missing or report["mismatched_keys"]:
        raise ValueError(f"weights: {len(missing)} tensors are missing and {len(report['mismatched_keys'])} have another shape")
    if all(getattr(model, name, None) is None for name in ("hf_device_map", "hf_quantizer", "tp_size")):
        model = model.to(device)
    stored = json.loads((folder / "config.json").read_text())
    name = stored.get("dtype") or stored.get("torch_dtype") or "float32"
    return model.eval().requires_grad_(False), getattr(torch, name)
