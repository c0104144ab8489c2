"""Which adapter drives a model: decided by its configuration alone.

A configuration names its adapter in ``sjd2.adapter``, or has the ``model_type`` of a family that an adapter exists for. What it does not say can
be given when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, PretrainedConfig

from .base import Adapter
from .refusals import check_config

__all__ = ["EMBEDDED_MODEL", "adapter_class", "has_family", "load_adapter"]

#: Module and class by the adapter's name: imported when needed.
_ADAPTERS = {
    "tiny_scenes": ("tiny_scenes", "TinyScenesAdapter"),
    "emu3": ("emu3", "Emu3Adapter"),
    "chameleon": ("chameleon", "ChameleonAdapter"),
    "anole": ("chameleon", "AnoleAdapter"),
    "lumina_mgpt": ("chameleon", "LuminaMGPTAdapter"),
    "janus": ("janus", "JanusAdapter"),
    "llamagen": ("llamagen", "LlamaGenAdapter"),
    "glm_image": ("glm_image", "GlmImageAdapter"),
    "generic": ("generic", "GenericAdapter"),
}
#: Keywords of an adapter's ``load`` that are no words about the model.
_NOT_TOLD = ("device", "dtype", "decode")

#: Adapters by the ``model_type`` of a configuration.
_FAMILIES = {"emu3": "emu3", "chameleon": "chameleon", "janus": "janus", "glm_image": "glm_image"}
#: The other way round; ``generic`` takes any.
_MODEL_TYPES = {name: kind for kind, name in _FAMILIES.items()} | {
    "anole": "chameleon", "lumina_mgpt": "chameleon", "llamagen": "llama", "tiny_scenes": "llama",
}  # fmt: skip

#: Where repositories of diffusers keep their autoregressive model, and beside it its processor; what shows that a repository is one.
_IN_DIFFUSERS, _BESIDE_IN_DIFFUSERS, _DIFFUSERS_INDEX = "vision_language_encoder", "processor", "model_index.json"

#: Folder of the model that ships with the package.
EMBEDDED_MODEL = Path(__file__).parent.parent / "tiny_scenes" / "weights"


def _local_folder(model: str | Path, options: dict[str, Any]) -> Path:
    """Where the model lies, fetched if need be; takes out of ``options`` those that say which of its versions, and where it is kept."""
    fetch = {name: options.pop(name) for name in ("revision", "token", "cache_dir", "force_download", "local_files_only") if name in options}
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or len(folder.parts) > 2 or str(model).startswith((".", "~", "/")):
        raise FileNotFoundError(f"model: expected a folder or a hub name, got {str(model)!r}")
    from huggingface_hub import snapshot_download

    try:
        first = Path(snapshot_download(str(model), allow_patterns=["config.json", _DIFFUSERS_INDEX], **fetch))
        # A pipeline of diffusers is mostly what makes pixels of tokens, tens of gigabytes that nothing here reads.
        parts = [_DIFFUSERS_INDEX, f"{_IN_DIFFUSERS}/*", f"{_BESIDE_IN_DIFFUSERS}/*"] if (first / _DIFFUSERS_INDEX).is_file() else None
        return Path(snapshot_download(str(model), allow_patterns=parts, **fetch))
    except Exception as error:  # no network, no such repository, no access: each its own kind
        raise FileNotFoundError(f"model: {str(model)!r} is no folder here and could not be fetched from the hub: {error}") from error


def _device(device: torch.device | str | None) -> torch.device:
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        found = None
    if found is None or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device: expected one of {', '.join(available)}, got {str(device)!r}")
    return found


def has_family(config: PretrainedConfig) -> bool:
    """Whether an adapter exists for models of this type, whatever their configuration says under ``sjd2``."""
    return config.model_type in _FAMILIES


def adapter_class(config: PretrainedConfig) -> Any:
    """The class of the adapter for a model of this configuration.

    Raises:
        ValueError: there is none; where the model could not be driven in any case, that is the reason given.
    """
    named = (getattr(config, "sjd2", None) or {}).get("adapter")
    name = named or _FAMILIES.get(config.model_type)
    if name not in _ADAPTERS:
        if named is None:
            check_config(config, config.get_text_config(decoder=True))
        found = f"model type {config.model_type!r}" if named is None else f"sjd2.adapter = {named!r}"
        raise ValueError(
            f"model: expected one that an adapter exists for ({', '.join(_ADAPTERS)}), got {found}; where the image tokens lie in another model "
            "can be told as adapter={'image_id_start': …, 'image_ids': …, 'grid': …}, see docs/models.md"
        )
    if _MODEL_TYPES.get(name, config.model_type) != config.model_type:
        raise ValueError(f"adapter: expected one for model type {config.model_type!r}, got {name}, which drives {_MODEL_TYPES[name]!r}")
    module, kind = _ADAPTERS[name]
    return getattr(import_module(f".{module}", __package__), kind)


def _divided(kind: Any, told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an adapter is ``told``, as entries of the configuration's ``sjd2``, and as keywords of its ``load``.

    Raises:
        ValueError: names that it knows nothing of.
    """
    keywords = [name for name, one in signature(kind.load).parameters.items() if one.kind is one.KEYWORD_ONLY and name not in _NOT_TOLD]
    names = [*kind.entries, *(name for name in keywords if name not in kind.entries)]
    if unknown := sorted(told.keys() - set(names)):
        known = f"fields of {', '.join(names)} (for {kind.name})" if names else f"none for {kind.name}"
        raise ValueError(f"adapter: expected {known}, got {', '.join(unknown)}")
    return (
        {name: value for name, value in told.items() if name in kind.entries},
        {name: value for name, value in told.items() if name not in kind.entries},
    )


def load_adapter(
    model: str | Path | None,
    *,
    adapter: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    **options: Any,
) -> Adapter:
    """Load a model and wrap it in its adapter.

    Args:
        model: a folder or a hub name, also of a pipeline of diffusers around the model; ``None`` for the embedded model.
        adapter: what the configuration does not say, by name: ``adapter``, which one it is; what its ``load`` takes (of Chameleon ``variant``,
            ``vqgan``, ``tokenizer``); and entries that go before those of the configuration's ``sjd2``: ``grid``, ``target_size``, or for a family
            without an adapter of its own the fields of ``generic.ImageFields``.
        device: default: the GPU if there is one.
        dtype: of the weights in memory, ``auto``: as they are stored; default float32 on a CPU, bfloat16 elsewhere.
        options: of the model's ``from_pretrained``: ``device_map``, ``tp_plan``, ``quantization_config``, ``attn_implementation`` …

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a device that is not there, damaged files, a model that no adapter exists for, or entries that its adapter does not know.
    """
    folder = EMBEDDED_MODEL if model is None else _local_folder(model, options)
    if (folder / _DIFFUSERS_INDEX).is_file() and (folder / _IN_DIFFUSERS).is_dir():
        folder = folder / _IN_DIFFUSERS
    target = _device(device)
    dtype = options.pop("torch_dtype", None) if dtype is None else dtype  # its name before Transformers 5
    if dtype is None:
        dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {folder} has no readable config.json: {error}") from error
    if adapter is not None:
        if not isinstance(adapter, Mapping):
            raise ValueError(f"adapter: expected fields by name, got {adapter!r}")
        unnamed = {} if config.model_type in _FAMILIES else {"adapter": "generic"}
        named = {"adapter": adapter["adapter"]} if "adapter" in adapter else {}
        config.update({"sjd2": {**unnamed, **(getattr(config, "sjd2", None) or {}), **named}})
    kind = adapter_class(config)
    if adapter is not None:
        entries, keywords = _divided(kind, {name: value for name, value in adapter.items() if name != "adapter"})
        config.update({"sjd2": {**(getattr(config, "sjd2", None) or {}), **entries}})
        options = {**keywords, **options}
    try:
        return kind.load(folder, config, device=target, dtype=dtype, **options)
    except Exception as error:  # safetensors, json, torch and Transformers each raise their own kinds
        raise ValueError(f"model: {folder} cannot be loaded: {error}") from error
