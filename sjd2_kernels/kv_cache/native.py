"""The compiled cache ops of ``sjd2_kernels._C``, called with the addresses of tensors.

A function here does what the definition of the same name in ``reference.py`` does. On the CPU it returns whether all rows fit; if one does
not, nothing was written. On a GPU it returns ``True`` and works on the caller's current stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..compiled import module as _C

__all__ = ["append", "compact_columns", "compact_rows", "compact_table", "gather", "reserve", "rollback"]

Columns = tuple[int, ...]


def _vector(tensor: torch.Tensor) -> Columns:
    return (tensor.data_ptr(), tensor.shape[0], tensor.stride(0))


def _matrix(tensor: torch.Tensor | None) -> Columns | None:
    return None if tensor is None else (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _columns(tensor: torch.Tensor) -> Columns:
    return (tensor.data_ptr(), tensor.element_size(), *tensor.shape, *tensor.stride())


def _flags(overflow: torch.Tensor | None) -> Columns | None:
    return None if overflow is None else (overflow.data_ptr(), overflow.stride(0))


def _queue(device: torch.device) -> tuple[int, int]:
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def _run(name: str, arguments: tuple, on: torch.Tensor, overflow: torch.Tensor | None, *, threads: bool = True) -> bool:
    assert _C is not None
    if on.is_cuda:
        getattr(_C, f"cuda_{name}")(*arguments, _flags(overflow), _queue(on.device))
        return True
    return getattr(_C, f"cpu_{name}")(*arguments, *((torch.get_num_threads(),) if threads else ())) < 0


def _scratch(on: torch.Tensor, maps: int, size: int) -> tuple[torch.Tensor | None, tuple[int, ...]]:
    """What the compactions on a GPU work in, kept alive by its first element, and as an argument."""
    assert _C is not None
    if not on.is_cuda:
        return None, ()
    scratch = torch.empty(_C.workspace_size(maps, size, on.shape[0]), dtype=torch.int64, device=on.device)
    return scratch, (scratch.data_ptr(),)


def append(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    overflow: torch.Tensor | None,
) -> bool:
    """Write W new columns of every row."""
    columns = tuple(map(_columns, (key_cache, value_cache, keys, values)))
    return _run("append", (*columns, _vector(lengths), _matrix(block_table)), lengths, overflow)


def gather(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    overflow: torch.Tensor | None,
) -> bool:
    """Copy the columns of every row out of its pages."""
    columns = tuple(map(_columns, (key_pages, value_pages, keys, values)))
    return _run("gather", (*columns, _vector(lengths), _matrix(block_table)), lengths, overflow)


def rollback(
    lengths: torch.Tensor,
    new_lengths: torch.Tensor,
    caches: Sequence[torch.Tensor],
    window: int,
    block_table: torch.Tensor | None,
    free_list: torch.Tensor | None,
    page_size: int,
    overflow: torch.Tensor | None,
) -> bool:
    """Set lengths, zero dropped columns, give back pages."""
    pages = (_matrix(block_table), None if free_list is None else _vector(free_list), page_size)
    return _run("rollback", (_vector(lengths), _vector(new_lengths), [*map(_columns, caches)], window, *pages), lengths, overflow)


def compact_rows(caches: Sequence[torch.Tensor], lengths: torch.Tensor, rows: torch.Tensor, overflow: torch.Tensor | None) -> bool:
    """Move rows of dense caches."""
    _alive, workspace = _scratch(lengths, 1, len(rows))
    return _run("compact_rows", ([*map(_columns, caches)], _vector(lengths), _vector(rows), *workspace), lengths, overflow)


def compact_columns(
    caches: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    columns: torch.Tensor,
    block_table: torch.Tensor | None,
    overflow: torch.Tensor | None,
) -> bool:
    """Move columns within their rows."""
    _alive, workspace = _scratch(lengths, *columns.shape)
    arguments = ([*map(_columns, caches)], _vector(lengths), _matrix(columns), _matrix(block_table), *workspace)
    return _run("compact_columns", arguments, lengths, overflow)


def reserve(
    block_table: torch.Tensor, free_list: torch.Tensor, lengths: torch.Tensor, count: int, page_size: int, overflow: torch.Tensor | None
) -> bool:
    """Take pages from the free list."""
    arguments = (_matrix(block_table), _vector(free_list), _vector(lengths), count, page_size)
    return _run("reserve", arguments, lengths, overflow, threads=False)


def compact_table(
    block_table: torch.Tensor, free_list: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor, overflow: torch.Tensor | None
) -> bool:
    """Move rows of a block table, and give back the pages of those that are dropped."""
    _alive, workspace = _scratch(lengths, 1, len(rows))
    return _run(
        "compact_table", (_matrix(block_table), _vector(free_list), _vector(lengths), _vector(rows), *workspace), lengths, overflow, threads=False
    )
