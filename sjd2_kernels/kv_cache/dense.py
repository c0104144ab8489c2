"""The public ops on dense caches: one buffer ``[R, H, S, D]`` per layer for keys and one for values, one length per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backends import resolve_backend
from ..compiled import obstacle
from . import checks, library

__all__ = ["check_rows", "kv_append", "kv_compact", "kv_compact_columns", "kv_rollback", "pick_backend"]

library.register()


def pick_backend(op: str, backend: str | None, tensor: torch.Tensor) -> str:
    """The back-end of one call, by name."""
    return resolve_backend(op, backend, {"native": obstacle(tensor.device.type), "torch": None})


def kv_append(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Write W new columns of every row behind that row's own valid columns, in place; keys and values in one launch.

    Equivalent to: ``key_cache[r, :, lengths[r] : lengths[r] + W] = keys[r]`` for every row r, and the same for values.

    Args:
        key_cache: ``[R, H, S, D]``, written. Any dtype of 1, 2, 4 or 8 bytes, any strides: ``[R, S, H, D]`` transposed will do.
        value_cache: ``[R, H, S, D']``, written.
        keys: ``[R, H, W, D]`` of the same dtype, any strides.
        values: ``[R, H, W, D']`` of the same dtype, any strides.
        lengths: int64 ``[R]``, valid columns per row. A row whose length is negative is skipped.
        overflow: bool ``[R]`` or ``None``. On a GPU a row with ``lengths + W > S`` is left alone and set to ``True`` here (no
            other row is ever set to ``False``); look at it when the host waits for the device anyway.
        check: look for such rows first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a row has no room. Nothing was written then.
        TypeError: an element size that cannot be moved, ``lengths`` is not int64, ``overflow`` is not bool.

    Example:
        >>> import torch
        >>> from sjd2_kernels import kv_append
        >>> keys, values = torch.zeros(2, 1, 4, 1), torch.zeros(2, 1, 4, 1)
        >>> kv_append(keys, values, torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1), torch.tensor([0, 2]))
        >>> keys[:, 0, :, 0].tolist()
        [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    checks.check_cache("key_cache", key_cache)
    checks.check_cache("value_cache", value_cache)
    rows, heads, capacity, width = key_cache.shape
    new = keys.shape[2] if keys.ndim == 4 else 0
    checks.check_shape("value_cache", value_cache, (rows, heads, capacity, value_cache.shape[3]))
    checks.check_shape("keys", keys, (rows, heads, new, width))
    checks.check_shape("values", values, (rows, heads, new, value_cache.shape[3]))
    checks.check_like("value_cache", key_cache, value_cache)
    checks.check_like("keys, values", key_cache, keys, values)
    checks.check_index("lengths", lengths, (rows,), key_cache)
    checks.check_flags(overflow, lengths)
    name = pick_backend("kv_append", backend, key_cache)
    if check:
        checks.check_append(key_cache, new, lengths, None)
    torch.ops.sjd2.kv_append(key_cache, value_cache, keys, values, lengths, None, overflow, name)


def kv_rollback(
    lengths: torch.Tensor,
    new_lengths: torch.Tensor,
    *,
    window: int = 0,
    caches: Sequence[torch.Tensor] = (),
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Set every row's length; the columns behind it are forgotten. O(R) at any length: no column is copied or looked at.

    Equivalent to: ``lengths[:] = new_lengths``. A row has ``lengths[r]`` valid columns and up to ``window`` more that an append wrote
    behind them, so rolling back to ``lengths[r] + a`` makes the first ``a`` of those valid.

    Args:
        lengths: int64 ``[R]``, written. A row whose length is negative is skipped.
        new_lengths: int64 ``[R]``, at most ``lengths + window``. A row whose new length is negative is skipped.
        window: columns written behind the valid ones.
        caches: keys and values of all layers, ``[R, H, S, *]``, if what is dropped must be gone: columns ``new_lengths[r]`` …
            ``lengths[r] + window − 1`` are zeroed, all caches in one launch (56 of them, more take another).
        overflow: bool ``[R]`` or ``None``. On a GPU a row with too large a new length is left alone and set to ``True`` here.
        check: look for such rows first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a length is too large. Nothing was written then.
        TypeError: an argument has the wrong dtype.

    Example:
        >>> import torch
        >>> from sjd2_kernels import kv_rollback
        >>> lengths = torch.tensor([5, 9, 4])
        >>> kv_rollback(lengths, torch.tensor([2, 12, -1]), window=4)
        >>> lengths
        tensor([ 2, 12,  4])
    """
    checks.check_index("lengths", lengths, (len(lengths),), lengths)
    checks.check_index("new_lengths", new_lengths, (len(lengths),), lengths)
    checks.check_size("window", window, 0)
    checks.check_caches("caches", caches, lengths)
    if caches:
        checks.check_shape("caches[0]", caches[0], (len(lengths), *caches[0].shape[1:]))
    checks.check_flags(overflow, lengths)
    name = pick_backend("kv_rollback", backend, lengths)
    page_size = caches[0].shape[2] if caches else -1
    if check:
        checks.check_rollback(lengths, new_lengths, window, None, None, page_size)
    torch.ops.sjd2.kv_rollback(lengths, new_lengths, list(caches), window, None, None, page_size, overflow, name)


def kv_compact(
    caches: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    rows: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Drop or reorder rows, in place, in all layers with one call.

    Equivalent to: ``cache[: len(rows)] = cache[rows]`` and ``lengths[: len(rows)] = lengths[rows]`` for every cache. Any map will do: rows
    may move up and down, change places, and go to several slots. One element per thread (on a CPU one row) is put aside to open a
    cycle; otherwise every byte moves once, and only columns below a row's length move.

    Args:
        caches: keys and values of all layers, ``[R, H, S, *]``, written; widths and dtypes may differ.
        lengths: int64 ``[R]``, written: row i gets the length of the row it now holds; rows from ``len(rows)`` on become empty.
        rows: int64 ``[R']``, R' ≤ R: the row that each slot gets. A negative one leaves its slot as it is.
        overflow: bool ``[R]`` or ``None``. On a GPU a slot that asks for a row ≥ R is left alone and set to ``True`` here.
        check: look for such slots first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a row does not exist. Nothing was written then.
        TypeError: an argument has the wrong dtype.

    Example:
        >>> import torch
        >>> from sjd2_kernels import kv_compact
        >>> cache, lengths = torch.arange(3.0).view(3, 1, 1, 1), torch.tensor([1, 1, 1])
        >>> kv_compact([cache], lengths, torch.tensor([2, 0]))
        >>> cache[:2].flatten().tolist(), lengths.tolist()
        ([2.0, 0.0], [1, 1, 0])
    """
    checks.check_index("lengths", lengths, (len(lengths),), lengths)
    checks.check_caches("caches", caches, lengths)
    if caches:
        checks.check_shape("caches[0]", caches[0], (len(lengths), *caches[0].shape[1:]))
    check_rows(rows, lengths)
    checks.check_flags(overflow, lengths)
    name = pick_backend("kv_compact", backend, lengths)
    if check:
        checks.check_compact_rows(caches, lengths, rows)
    torch.ops.sjd2.kv_compact_rows(list(caches), lengths, rows, overflow, name)


def check_rows(rows: torch.Tensor, lengths: torch.Tensor) -> None:
    """int64, at most one per row."""
    if rows.ndim != 1 or len(rows) > len(lengths):
        raise ValueError(f"rows: expected shape (n,) with n <= {len(lengths)}, got {tuple(rows.shape)}")
    checks.check_index("rows", rows, (len(rows),), lengths)


def kv_compact_columns(
    caches: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    columns: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Move chosen columns behind every row's length together, in place, in all layers with one call.

    Equivalent to: ``cache[r, :, lengths[r] + c] = cache[r, :, lengths[r] + columns[r, c]]`` for every row r, all c at once. What a tree
    of drafts needs when its accepted path is not a prefix; lengths are then moved by :func:`kv_rollback`.

    Args:
        caches: keys and values of all layers, ``[R, H, S, *]``, written; widths and dtypes may differ.
        lengths: int64 ``[R]``. A row whose length is negative is skipped.
        columns: int64 ``[R, C]``, counted from the row's length; any map, as for :func:`kv_compact`. A negative one leaves its column.
        overflow: bool ``[R]`` or ``None``. On a GPU a row that asks for a column outside the cache is left alone and set to ``True`` here.
        check: look for such rows first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a column does not exist. Nothing was written then.
        TypeError: an argument has the wrong dtype.

    Example:
        >>> import torch
        >>> from sjd2_kernels import kv_compact_columns
        >>> cache = torch.arange(6.0).view(1, 1, 6, 1)
        >>> kv_compact_columns([cache], torch.tensor([1]), torch.tensor([[1, 4]]))
        >>> cache.flatten().tolist()
        [0.0, 2.0, 5.0, 3.0, 4.0, 5.0]
    """
    checks.check_index("lengths", lengths, (len(lengths),), lengths)
    checks.check_caches("caches", caches, lengths)
    if caches:
        checks.check_shape("caches[0]", caches[0], (len(lengths), *caches[0].shape[1:]))
    checks.check_index("columns", columns, (len(lengths), columns.shape[-1]), lengths)
    checks.check_flags(overflow, lengths)
    name = pick_backend("kv_compact_columns", backend, lengths)
    if check:
        checks.check_compact_columns(caches, lengths, columns, None)
    torch.ops.sjd2.kv_compact_columns(list(caches), lengths, columns, None, overflow, name)
