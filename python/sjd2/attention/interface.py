"""The attentions of a window, by name, as Transformers calls them.

| name | reads | runs on |
|---|---|---|
| ``model`` | all columns that the mask has | anything; whatever attention the model was loaded with, SDPA as a rule |
| ``triton`` | the valid columns, in one piece or in pages | GPUs (``sjd2_kernels.window_attention``) |
| ``flex`` | the valid blocks of 128 columns | PyTorch's flex attention, compiled at its first call |
| ``flash`` | the valid columns | NVIDIA GPUs with flash-attn, half precision, without timestep tokens |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sjd2_kernels import window_attention
from sjd2_kernels.attention.op import attention_obstacle

from ..cache import RaggedCache
from .shape import AttentionShape

__all__ = ["ATTENTIONS", "attending", "attention_function", "attention_mask", "obstacle"]

#: By the name of its option: the name that Transformers knows it by. None of ours may contain "flash", which Transformers takes for a library.
ATTENTIONS = {"model": None, "triton": "sjd2_triton", "flex": "flex_attention", "flash": "sjd2_kvcache"}

#: Of flex attention's masks.
_BLOCK = 128

_Result = tuple[torch.Tensor, None]


def _described(lengths: torch.Tensor, levels: torch.Tensor | None, block_table: torch.Tensor | None) -> torch.Tensor:
    """Lengths, levels and pages as one tensor ``[R, 1 + W, 1, 1 + M]``: four axes are what Transformers hands to every layer as it is."""
    rows = lengths[:, None] if levels is None else torch.cat([lengths[:, None], levels], dim=1)
    if block_table is None:
        return rows[..., None, None]
    return torch.cat([rows[..., None], block_table[:, None].expand(-1, rows.shape[1], -1)], dim=2)[:, :, None]


def _read(described: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    _, levels, _, pages = described.shape
    return described[:, 0, 0, 0], described[:, 1:, 0, 0] if levels > 1 else None, described[:, 0, 0, 1:] if pages > 1 else None


def _refuse_more(named: dict[str, Any]) -> None:
    """What a layer asks for beyond a softmax of scaled scores.

    Raises:
        ValueError: anything of that kind.
    """
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if named.get(name) is not None:
            raise ValueError(f"attention: expected plain softmax attention, the model's layers have {name}; use attention='model'")


def _triton(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, scaling: float | None = None, **named: Any
) -> _Result:
    _refuse_more(named)
    lengths, levels, block_table = _read(attention_mask)
    return window_attention(query, key, value, lengths, levels, block_table=block_table, scale=scaling, backend="triton"), None


def _flash(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, scaling: float | None = None, **named: Any
) -> _Result:
    from flash_attn import flash_attn_with_kvcache

    _refuse_more(named)
    lengths, *_ = _read(attention_mask)
    seen = (lengths + query.shape[2]).to(torch.int32)  # with this many columns and T queries, "causal" is what a window is
    columns = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return flash_attn_with_kvcache(*columns, cache_seqlens=seen, softmax_scale=scaling, causal=True), None


def _block_mask(lengths: torch.Tensor, levels: torch.Tensor | None, inputs: int, columns: int) -> BlockMask:
    """``window_mask`` for flex attention: no block that nobody sees is read, and none that all see is masked."""

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        ahead = column - lengths[row]
        if levels is None:
            return ahead <= query
        window = levels.shape[1]
        own = (ahead >= window) & (ahead - window + 1 == levels[row, query.clamp(max=window - 1)])
        return torch.where(query < window, (ahead <= query) | own, ahead == query)

    rows, across = len(lengths), -(-inputs // _BLOCK)
    block = torch.arange(-(-columns // _BLOCK), dtype=torch.int32, device=lengths.device)
    full = (lengths if levels is None else torch.zeros_like(lengths)) // _BLOCK  # timestep tokens do not see even the valid columns
    partial = -(-(lengths + inputs) // _BLOCK).clamp(max=len(block)) - full

    def spread(values: torch.Tensor) -> torch.Tensor:  # the same for every block of queries
        return values.to(torch.int32).view(rows, 1, 1, -1).expand(rows, 1, across, -1)

    places = (full[:, None] + block).clamp(max=len(block) - 1)
    return BlockMask.from_kv_blocks(
        spread(partial)[..., 0].contiguous(),
        spread(places).contiguous(),
        spread(full)[..., 0].contiguous(),
        spread(block.expand(rows, -1)).contiguous(),
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(inputs, columns),
    )


def attention_mask(name: str, cache: RaggedCache, inputs: int) -> torch.Tensor | BlockMask:
    """What a model is to be passed as its mask, so that the attention ``name`` knows what the next ``inputs`` see of ``cache``."""
    if name == "model":
        return cache.mask(inputs)
    if name == "flex":
        return _block_mask(cache.lengths, cache.levels, inputs, cache.extent)
    return _described(cache.lengths, cache.levels, cache.pages(inputs))


def attention_function(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention ``name`` with the arguments that layers of Transformers call it with."""
    return ALL_ATTENTION_FUNCTIONS[ATTENTIONS[name] or "sdpa"]


def obstacle(name: str, shape: AttentionShape | None, device: torch.device, *, timesteps: bool) -> str | None:
    """Why the attention ``name`` cannot be used on ``device`` for a window with or without ``timesteps``; ``None`` if it can."""
    if name == "model":
        return None
    if shape is None:
        return "the model's attention is not one that can be exchanged (see AttentionShape)"
    if name == "triton":
        example = torch.empty(0, shape.heads, 0, shape.width, dtype=shape.dtype, device=device)
        return attention_obstacle(example, example)
    if name == "flex" and device.type != "cuda":
        return "PyTorch compiles flex attention with masks of this kind for GPUs only"
    if name == "flash":
        if find_spec("flash_attn") is None:
            return "flash-attn is not installed"
        if device.type != "cuda" or shape.dtype not in (torch.float16, torch.bfloat16):
            return f"flash-attn needs float16 or bfloat16 on a GPU, and this is {shape.dtype} on {device.type}"
        if timesteps:
            return "it has no mask, and timestep tokens need one"
    return None


@contextmanager
def attending(config: PretrainedConfig, cache: RaggedCache, inputs: int) -> Iterator[Any]:
    """While it lasts, layers of this configuration compute their attention by ``cache.attention``; gives what to pass them as their mask."""
    ours = ATTENTIONS[cache.attention]
    if ours is None:
        yield attention_mask("model", cache, inputs)
        return
    own = config._attn_implementation
    config._attn_implementation = ours
    try:
        yield attention_mask(cache.attention, cache, inputs)
    finally:
        config._attn_implementation = own


AttentionInterface.register("sjd2_triton", _triton)
AttentionInterface.register("sjd2_kvcache", _flash)
