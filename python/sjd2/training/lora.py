"""Low-rank adapters (2106.09685) by ``peft``, put into a model in place and merged into its weights at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["add_lora", "has_lora", "merge_lora", "without_lora"]


def add_lora(model: PreTrainedModel, rank: int, excluded: Sequence[nn.Module] = ()) -> None:
    """Freeze ``model`` and put trainable adapters of this rank beside every linear layer of its blocks; their scale is 2 (alpha = 2·rank).

    What lies in ``excluded`` modules of it gets none.

    The new parameters are float32 beside half-precision weights, and change nothing before the first step.

    Raises:
        ValueError: a rank below 1.
        ImportError: ``peft`` is not installed.
    """
    if rank < 1:
        raise ValueError(f"lora: expected a rank >= 1, got {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "sjd2-kernels[tune]"') from error
    parts = [re.escape(name) for name, module in model.named_modules() if any(module is part for part in excluded)]
    outside = rf"({'|'.join(parts)})\..*" if parts else None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=outside), model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):  # steps of AdamW are smaller than their last bit
            parameter.data = parameter.data.float()


def has_lora(model: PreTrainedModel) -> bool:
    """Whether ``model`` has adapters."""
    return hasattr(model, "peft_config")


@contextmanager
def without_lora(model: PreTrainedModel) -> Iterator[None]:
    """What ``model`` was before its adapters, as long as the block lasts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_lora(model: PreTrainedModel) -> None:
    """Add the adapters to the weights they stand beside and take them out: the model has its own layers again, and does what it did with them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        base: nn.Module = layer.get_base_layer()
        model.set_submodule(name, base)
    if hasattr(model, "peft_config"):  # it would be saved as a model with adapters
        del model.peft_config
        model._hf_peft_config_loaded = False
