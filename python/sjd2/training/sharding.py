"""A model in parts: every process keeps a share of each weight, and has a layer whole only while it computes with it (FSDP2 of PyTorch).

It is sharded here and not by ``accelerate``, which does so on accelerators alone, and whose checkpoints only a sharded run reads: ours hold whole
tensors, whether the model was in parts or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["is_sharded", "is_share", "on_whole_weights", "shard", "share_like", "whole"]

Result = TypeVar("Result")


def _layers(model: nn.Module, leave: set[nn.Module]) -> list[nn.Module]:
    """The layers that Transformers says are not to be split, the inner ones first."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in reversed(list(model.modules())) if type(module).__name__ in kinds and module not in leave]


def shard(root: nn.Module, model: nn.Module, device: torch.device, frozen: Sequence[nn.Module], *methods: str) -> None:
    """Share the weights of ``root`` among all processes, in place; this one keeps its part on ``device``.

    Args:
        root: whose forward is called.
        model: in it, of Transformers: its layers are gathered one by one, everything else with ``root``.
        device: of this process.
        frozen: modules of ``model`` that stay whole, for no forward uses them.
        methods: of ``root`` beside its forward that are called from outside.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    ignored = {parameter for part in frozen for parameter in part.parameters()}
    # Weights are let go of after every forward, those of the root, too: where no backward follows, nothing else would.
    for module in [*_layers(model, {module for part in frozen for module in part.modules()}), root]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    for method in methods:
        register_fsdp_forward_method(root, method)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called for it."""
    return isinstance(model, FSDPModule)


def is_share(value: torch.Tensor) -> bool:
    """Whether this process has a part of it only."""
    return isinstance(value, DTensor)


def on_whole_weights(model: nn.Module, act: Callable[[], Result]) -> Result:
    """``act()`` while all weights of ``model`` are whole in each process: forwards then need not be as many in one process as in the others.

    To be called in a method that was named to :func:`shard`; for a model that is not sharded it does nothing else.
    """
    inner = [module for module in model.modules() if isinstance(module, FSDPModule) and module is not model]
    for module in inner:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        return act()
    finally:
        for module in inner:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole(state: Any, *, keep: bool) -> Any:
    """``state``, nested dictionaries and lists, with whole tensors on the CPU in place of shares; all processes have to call it together.

    Args:
        keep: whether this process has a use for them; otherwise it has empty ones.
    """
    if isinstance(state, dict):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep=keep) for value in state]
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else full.new_empty(0)
    return state


def share_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor that all processes have, what this one keeps of ``like``; the tensor itself where ``like`` is whole or of another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
