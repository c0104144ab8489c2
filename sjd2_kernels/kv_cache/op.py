"""The public cache ops. Rolling a cache back needs none: a row's valid columns are those below its length."""

from __future__ import annotations

import torch

from ..checks import check_integer, check_shape

__all__ = ["kv_append"]


def kv_append(key_cache: torch.Tensor, value_cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> None:
    """Write W new columns of every row behind that row's own valid columns, in place.

    Equivalent to: ``key_cache[r, :, lengths[r] : lengths[r] + W] = keys[r]`` for every row r, and the same for values.

    Args:
        key_cache: ``[R, H, S, D]``, written.
        value_cache: ``[R, H, S, D']``, written.
        keys: ``[R, H, W, D]`` of the same dtype.
        values: ``[R, H, W, D']`` of the same dtype.
        lengths: int64 ``[R]``, valid columns per row; ``lengths + W <= S`` is the caller's duty (looking at it here would
            make the host wait for the device).

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    rows, heads, _, width = key_cache.shape
    new = keys.shape[2]
    check_shape("keys", keys, (rows, heads, new, width))
    check_shape("values", values, (rows, heads, new, value_cache.shape[3]))
    check_shape("lengths", lengths, (rows,))
    check_integer("lengths", lengths)
    if keys.dtype != key_cache.dtype or values.dtype != value_cache.dtype:
        raise ValueError(f"keys, values: expected dtype {key_cache.dtype} as the cache, got {keys.dtype} and {values.dtype}")
    columns = lengths[:, None] + torch.arange(new, device=lengths.device)
    row = torch.arange(rows, device=lengths.device)[:, None]
    key_cache[row, :, columns] = keys.transpose(1, 2)
    value_cache[row, :, columns] = values.transpose(1, 2)
