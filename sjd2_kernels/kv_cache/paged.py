"""The public ops on paged caches: pools of pages shared by all rows, a block table, and a free list that lives on the device.

    pools        ``[N, H, P, D]`` per layer for keys, and for values: N pages of P columns
    block table  int64 ``[R, M]``: page of each row's columns 0 … P−1, P … 2P−1, …; −1 where there is none. One for all layers.
    free list    int64 ``[1 + N]``: a stack. Element 0 is the number of free pages, the elements behind it are those pages, the top last.

Pages change hands in the order of rows and columns, never in the order in which threads get there: the same calls give the same
tables. A rollback right after a reservation puts the free list back exactly as it was.

On a CPU every call first sees to it that no page belongs to two rows, or to a row and the free list, and raises if one does. On a GPU
``check=True`` does so, which makes the host wait for the device; without it, rows that share a page write over each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks
from .dense import check_rows, pick_backend

__all__ = [
    "paged_kv_append",
    "paged_kv_compact",
    "paged_kv_compact_columns",
    "paged_kv_gather",
    "paged_kv_reserve",
    "paged_kv_rollback",
    "paged_kv_tables",
]


def paged_kv_tables(rows: int, max_pages: int, pages: int, *, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """An empty block table ``[rows, max_pages]`` and a free list of all ``pages``, page 0 on top.

    Example:
        >>> from sjd2_kernels import paged_kv_tables
        >>> table, free_list = paged_kv_tables(2, 1, 3)
        >>> table.tolist(), free_list.tolist()
        ([[-1], [-1]], [3, 2, 1, 0])
    """
    for name, value in (("rows", rows), ("max_pages", max_pages), ("pages", pages)):
        checks.check_size(name, value, 0)
    block_table = torch.full((rows, max_pages), -1, dtype=torch.int64, device=device)
    return block_table, torch.tensor([pages, *range(pages - 1, -1, -1)], dtype=torch.int64, device=device)


def _check_table(block_table: torch.Tensor, lengths: torch.Tensor) -> None:
    checks.check_index("lengths", lengths, (len(lengths),), lengths)
    checks.check_index("block_table", block_table, (len(lengths), block_table.shape[-1]), lengths)


def _check_free_list(free_list: torch.Tensor, lengths: torch.Tensor) -> None:
    if free_list.ndim != 1 or len(free_list) == 0:
        raise ValueError(f"free_list: expected shape (1 + pages,), got {tuple(free_list.shape)}")
    checks.check_index("free_list", free_list, (len(free_list),), lengths)


def _check_pools(key_pages: torch.Tensor, value_pages: torch.Tensor, lengths: torch.Tensor) -> None:
    checks.check_caches("key_pages, value_pages", (key_pages, value_pages), lengths)
    checks.check_like("value_pages", key_pages, value_pages)
    if key_pages.shape[2] == 0:
        raise ValueError(f"key_pages: expected pages of at least one column, got shape {tuple(key_pages.shape)}")


def paged_kv_reserve(
    block_table: torch.Tensor,
    free_list: torch.Tensor,
    lengths: torch.Tensor,
    new: int,
    *,
    page_size: int,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Take pages from the free list until every row has room for ``new`` columns behind its length. Once for all layers.

    Rows take pages in their order, lower columns first, the top of the free list first; a row that has room takes none.

    Args:
        block_table: int64 ``[R, M]``, written.
        free_list: int64 ``[1 + N]``, written.
        lengths: int64 ``[R]``. A row whose length is negative is skipped.
        new: columns to make room for.
        page_size: P.
        overflow: bool ``[R]`` or ``None``. On a GPU a row that would need more than M pages, or more than rows before it left over,
            takes none and is set to ``True`` here.
        check: look for such rows, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape or device does not fit; or, if looked at, there is no room or a page is in two places. Nothing was written then.
        TypeError: an argument has the wrong dtype.

    Example:
        >>> import torch
        >>> from sjd2_kernels import paged_kv_reserve, paged_kv_tables
        >>> table, free_list = paged_kv_tables(2, 3, 4)
        >>> paged_kv_reserve(table, free_list, torch.tensor([0, 0]), 5, page_size=4)
        >>> table.tolist(), int(free_list[0])
        ([[0, 1, -1], [2, 3, -1]], 0)
    """
    _check_table(block_table, lengths)
    _check_free_list(free_list, lengths)
    checks.check_size("new", new, 0)
    checks.check_size("page_size", page_size, 1)
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_reserve", backend, lengths)
    if check:
        checks.check_reserve(block_table, free_list, lengths, new, page_size)
    torch.ops.sjd2.kv_reserve(block_table, free_list, lengths, new, page_size, overflow, name)


def paged_kv_append(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """:func:`~sjd2_kernels.kv_append` into the pages that :func:`paged_kv_reserve` gave the rows; keys and values in one launch.

    Args:
        key_pages: ``[N, H, P, D]``, written. Dtypes and strides as for ``kv_append``.
        value_pages: ``[N, H, P, D']``, written.
        keys: ``[R, H, W, D]``.
        values: ``[R, H, W, D']``.
        block_table: int64 ``[R, M]``.
        lengths: int64 ``[R]``. A row whose length is negative is skipped.
        overflow: bool ``[R]`` or ``None``. On a GPU a row without pages for all W columns is left alone and set to ``True`` here.
        check: look for such rows, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a page is missing, does not exist or belongs to two rows.
            Nothing was written then.
        TypeError: an argument has the wrong dtype.
    """
    _check_table(block_table, lengths)
    _check_pools(key_pages, value_pages, lengths)
    _, heads, _, width = key_pages.shape
    new = keys.shape[2] if keys.ndim == 4 else 0
    checks.check_shape("keys", keys, (len(lengths), heads, new, width))
    checks.check_shape("values", values, (len(lengths), heads, new, value_pages.shape[3]))
    checks.check_like("keys, values", key_pages, keys, values)
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_append", backend, key_pages)
    if check:
        checks.check_append(key_pages, new, lengths, block_table)
    torch.ops.sjd2.kv_append(key_pages, value_pages, keys, values, lengths, block_table, overflow, name)


def paged_kv_gather(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """Copy every row's columns below its length out of its pages, for attention that cannot read pages.

    It reads and writes the whole cache of one layer: as much as an attention that has to read it anyway, twice over.

    Args:
        keys: ``[R, H, S, D]``, written below each row's length and nowhere else.
        values: ``[R, H, S, D']``, likewise.
        key_pages: ``[N, H, P, D]`` of the same dtype.
        value_pages: ``[N, H, P, D']`` of the same dtype.
        block_table: int64 ``[R, M]``.
        lengths: int64 ``[R]``, columns to copy. A row whose length is negative is skipped.
        overflow: bool ``[R]`` or ``None``. On a GPU a row without all these pages, or with more than S columns, is left alone and
            set to ``True`` here.
        check: look for such rows, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a page is missing, does not exist or belongs to two rows.
            Nothing was written then.
        TypeError: an argument has the wrong dtype.
    """
    _check_table(block_table, lengths)
    _check_pools(key_pages, value_pages, lengths)
    checks.check_cache("keys", keys)
    checks.check_cache("values", values)
    _, heads, _, width = key_pages.shape
    checks.check_shape("keys", keys, (len(lengths), heads, keys.shape[2], width))
    checks.check_shape("values", values, (len(lengths), heads, keys.shape[2], value_pages.shape[3]))
    checks.check_like("keys, values", key_pages, keys, values)
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_gather", backend, key_pages)
    if check:
        checks.check_gather(keys, key_pages, block_table, lengths)
    torch.ops.sjd2.kv_gather(keys, values, key_pages, value_pages, block_table, lengths, overflow, name)


def paged_kv_rollback(
    block_table: torch.Tensor,
    free_list: torch.Tensor,
    lengths: torch.Tensor,
    new_lengths: torch.Tensor,
    *,
    page_size: int,
    window: int = 0,
    pools: Sequence[torch.Tensor] = (),
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """:func:`~sjd2_kernels.kv_rollback`, and every page without a valid column goes back to the free list. Copies nothing.

    Pages are put on the stack so that the first one, in the order of rows and columns, is taken first again.

    Args:
        block_table: int64 ``[R, M]``, written.
        free_list: int64 ``[1 + N]``, written.
        lengths: int64 ``[R]``, written. A row whose length is negative is skipped.
        new_lengths: int64 ``[R]``, at most ``lengths + window``. A row whose new length is negative is skipped.
        page_size: P.
        window: columns written behind the valid ones.
        pools: keys and values of all layers, ``[N, H, P, *]``, if what is dropped must be gone: it is zeroed.
        overflow: bool ``[R]`` or ``None``. On a GPU a row with too large a new length is left alone and set to ``True`` here.
        check: look for such rows, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape or device does not fit; or, if looked at, a length is too large or a page is in two places. Nothing was
            written then.
        TypeError: an argument has the wrong dtype.

    Example:
        >>> import torch
        >>> from sjd2_kernels import paged_kv_reserve, paged_kv_rollback, paged_kv_tables
        >>> (table, free_list), lengths = paged_kv_tables(1, 4, 4), torch.tensor([0])
        >>> paged_kv_reserve(table, free_list, lengths, 8, page_size=2)
        >>> paged_kv_rollback(table, free_list, lengths, torch.tensor([3]), page_size=2, window=8)
        >>> table.tolist(), lengths.tolist(), free_list[1:3].tolist()
        ([[0, 1, -1, -1]], [3], [3, 2])
    """
    _check_table(block_table, lengths)
    _check_free_list(free_list, lengths)
    checks.check_index("new_lengths", new_lengths, (len(lengths),), lengths)
    checks.check_size("page_size", page_size, 1)
    checks.check_size("window", window, 0)
    checks.check_caches("pools", pools, lengths)
    if pools:
        checks.check_shape("pools[0]", pools[0], (len(free_list) - 1, pools[0].shape[1], page_size, pools[0].shape[3]))
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_rollback", backend, lengths)
    if check:
        checks.check_rollback(lengths, new_lengths, window, block_table, free_list, page_size)
    torch.ops.sjd2.kv_rollback(lengths, new_lengths, list(pools), window, block_table, free_list, page_size, overflow, name)


def paged_kv_compact(
    block_table: torch.Tensor,
    free_list: torch.Tensor,
    lengths: torch.Tensor,
    rows: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """:func:`~sjd2_kernels.kv_compact` of the block table: rows are dropped or reordered, pages of dropped rows go back, no column moves.

    Args:
        block_table: int64 ``[R, M]``, written.
        free_list: int64 ``[1 + N]``, written.
        lengths: int64 ``[R]``, written; rows from ``len(rows)`` on become empty.
        rows: int64 ``[R']``, R' ≤ R, every row at most once: the row that each slot gets. A negative one leaves its slot as it is.
        overflow: bool ``[R]`` or ``None``. On a GPU a slot that asks for a row ≥ R, or for one that a slot before it got, becomes
            empty and is set to ``True`` here.
        check: look for such slots, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape or device does not fit; or, if looked at, a row does not exist or is asked for twice, or a page is in two
            places. Nothing was written then.
        TypeError: an argument has the wrong dtype.
    """
    _check_table(block_table, lengths)
    _check_free_list(free_list, lengths)
    check_rows(rows, lengths)
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_compact", backend, lengths)
    if check:
        checks.check_compact_table(block_table, free_list, rows)
    torch.ops.sjd2.kv_compact_table(block_table, free_list, lengths, rows, overflow, name)


def paged_kv_compact_columns(
    pools: Sequence[torch.Tensor],
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    columns: torch.Tensor,
    *,
    overflow: torch.Tensor | None = None,
    check: bool = False,
    backend: str | None = None,
) -> None:
    """:func:`~sjd2_kernels.kv_compact_columns` within the rows' pages.

    Args:
        pools: keys and values of all layers, ``[N, H, P, *]``, written.
        block_table: int64 ``[R, M]``.
        lengths: int64 ``[R]``. A row whose length is negative is skipped.
        columns: int64 ``[R, C]``, counted from the row's length. A negative one leaves its column.
        overflow: bool ``[R]`` or ``None``. On a GPU a row that asks for a column without a page is left alone and set to ``True`` here.
        check: look for such rows, and for shared pages, first on a GPU too, which makes the host wait. On a CPU it always happens.
        backend: ``torch``, ``native``, or ``None`` for the fastest that can run.

    Raises:
        ValueError: a shape, dtype or device does not fit; or, if looked at, a page is missing or belongs to two rows. Nothing was
            written then.
        TypeError: an argument has the wrong dtype.
    """
    _check_table(block_table, lengths)
    checks.check_caches("pools", pools, lengths)
    checks.check_index("columns", columns, (len(lengths), columns.shape[-1]), lengths)
    checks.check_flags(overflow, lengths)
    name = pick_backend("paged_kv_compact_columns", backend, lengths)
    if check:
        checks.check_compact_columns(pools, lengths, columns, block_table)
    torch.ops.sjd2.kv_compact_columns(list(pools), lengths, columns, block_table, overflow, name)
