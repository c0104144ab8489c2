"""The definition of ``window_attention``: a mask, and PyTorch's own attention under it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["window_attention_reference", "window_mask"]


def window_mask(lengths: torch.Tensor, levels: torch.Tensor | None, inputs: int, columns: int) -> torch.Tensor:
    """bool ``[R, inputs, columns]``: which of a row's ``columns`` each of the next ``inputs`` sees.

    Those that are valid (below ``lengths``, int64 ``[R]``), those of the inputs before it, and its own. With ``levels`` (int64 ``[R, W]``) the inputs
    behind the W of the window are timestep tokens of levels 1, 2, …: each sees only itself, and is seen only by the inputs of its level.
    """
    ahead = torch.arange(inputs, device=lengths.device)
    column = (torch.arange(columns, device=lengths.device) - lengths[:, None])[:, None]  # counted from the first new input
    visible = column <= ahead[:, None]
    if levels is None:
        return visible
    window = levels.shape[1]
    own_level = (column >= window) & (column - window + 1 == levels[..., None])
    return torch.cat([visible[:, :window] | own_level, (column == ahead[:, None])[:, window:]], dim=1)


def _gathered(pages: torch.Tensor, block_table: torch.Tensor) -> torch.Tensor:
    """``[R, G, M · P, D]`` from pages ``[N, G, P, D]``; of a page that a row does not have, whatever another one holds."""
    return pages[block_table.clamp(min=0)].transpose(1, 2).flatten(2, 3)


def window_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    levels: torch.Tensor | None,
    block_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See :func:`sjd2_kernels.window_attention`."""
    if block_table is not None:
        keys, values = _gathered(keys, block_table), _gathered(values, block_table)
    mask = window_mask(lengths, levels, query.shape[2], keys.shape[2])[:, None]
    grouped = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped).transpose(1, 2).contiguous()
