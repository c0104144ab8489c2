"""What the cache ops demand of their arguments. The first half looks at shapes and dtypes, the second at values (and so waits for a GPU)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import check_integer, check_shape

__all__ = [
    "check_append",
    "check_cache",
    "check_caches",
    "check_compact_columns",
    "check_compact_rows",
    "check_compact_table",
    "check_flags",
    "check_gather",
    "check_index",
    "check_like",
    "check_pages",
    "check_reserve",
    "check_rollback",
    "check_size",
]


def check_cache(name: str, cache: torch.Tensor) -> None:
    """A 4-D tensor whose elements can be moved, each with memory of its own."""
    if cache.ndim != 4:
        raise ValueError(f"{name}: expected 4 dimensions, got shape {tuple(cache.shape)}")
    if cache.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"{name}: expected a dtype of 1, 2, 4 or 8 bytes, got {cache.dtype}")
    if 0 in cache.stride() and any(stride == 0 and size > 1 for size, stride in zip(cache.shape, cache.stride(), strict=True)):
        raise ValueError(f"{name}: expected memory of its own for every element, got an expanded tensor with strides {cache.stride()}")


def check_like(names: str, cache: torch.Tensor, *tensors: torch.Tensor) -> None:
    """The same dtype and device as the cache."""
    if any(tensor.dtype != cache.dtype for tensor in tensors):
        raise ValueError(f"{names}: expected dtype {cache.dtype} as the cache, got {' and '.join(str(tensor.dtype) for tensor in tensors)}")
    for tensor in tensors:
        check_device(names, cache, tensor)


def check_device(name: str, cache: torch.Tensor, tensor: torch.Tensor) -> None:
    """The cache's device."""
    if tensor.device != cache.device:
        raise ValueError(f"{name}: expected device {cache.device} as the cache, got {tensor.device}")


def check_caches(name: str, caches: Sequence[torch.Tensor], lengths: torch.Tensor) -> None:
    """Caches of one model: any widths and dtypes, otherwise alike."""
    for index, cache in enumerate(caches):
        check_cache(f"{name}[{index}]", cache)
        check_device(f"{name}[{index}]", lengths, cache)
        if cache.shape[:3] != caches[0].shape[:3]:
            raise ValueError(
                f"{name}[{index}]: expected shape ({', '.join(map(str, caches[0].shape[:3]))}, *) as the first, got {tuple(cache.shape)}"
            )


def check_index(name: str, index: torch.Tensor, shape: tuple[int, ...], beside: torch.Tensor) -> None:
    """int64 of ``shape``, on the device of ``beside``."""
    check_shape(name, index, shape)
    check_integer(name, index)
    check_device(name, beside, index)


def check_flags(overflow: torch.Tensor | None, beside: torch.Tensor) -> None:
    """bool, one per row."""
    if overflow is None:
        return
    check_shape("overflow", overflow, beside.shape[:1])
    if overflow.dtype != torch.bool:
        raise TypeError(f"overflow: expected dtype torch.bool, got {overflow.dtype}")
    check_device("overflow", beside, overflow)


def check_size(name: str, value: int, low: int) -> None:
    """A whole number that is not below ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")


def _first(rows: torch.Tensor) -> int | None:
    """The first row that is marked."""
    return int(rows.long().argmax()) if rows.numel() and bool(rows.any()) else None


def check_pages(block_table: torch.Tensor, pages: int, free_list: torch.Tensor | None = None) -> None:
    """Every page exists, and belongs to one row or to the free list, once."""
    free = block_table.new_empty(0)
    if free_list is not None:
        count = int(free_list[0])
        if not 0 <= count <= pages:
            raise ValueError(f"free_list: expected a count of 0 … {pages}, got {count}")
        free = free_list[1 : 1 + count]
        if ((free < 0) | (free >= pages)).any():
            raise ValueError(f"free_list: expected pages 0 … {pages - 1}, got {free.tolist()}")
        if len(free.unique()) < count:
            raise ValueError(f"free_list: expected every page once, got {free.tolist()}")
    if (row := _first((block_table >= pages).any(1))) is not None:
        raise ValueError(f"block_table: expected pages below {pages}, got {int(block_table[row].max())} in row {row}")
    listed = torch.cat([free, block_table[block_table >= 0]])
    count_of = torch.bincount(listed, minlength=pages)
    if (page := _first(count_of > 1)) is not None:
        where = [f"row {row}" for row in (block_table == page).any(1).nonzero().flatten().tolist()] + ["the free list"] * bool((free == page).any())
        raise ValueError(f"block_table: expected every page in one place, got page {page} in {' and '.join(where)} ({int(count_of[page])} times)")


def _check_columns(name: str, block_table: torch.Tensor | None, cache: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> None:
    """Columns begin[r] … end[r] − 1 exist, for rows where ``end > begin``."""
    page_size = cache.shape[2]
    capacity = page_size if block_table is None else page_size * block_table.shape[1]
    asked = end > begin
    if (row := _first(asked & ((begin < 0) | (end > capacity)))) is not None:
        raise ValueError(f"{name}: expected columns below {capacity}, got {int(begin[row])} … {int(end[row]) - 1} in row {row}")
    if block_table is None:
        return
    entries = torch.arange(block_table.shape[1], device=begin.device)
    used = asked[:, None] & (entries >= (begin // page_size)[:, None]) & (entries < ((end + page_size - 1) // page_size)[:, None])
    if (row := _first((used & (block_table < 0)).any(1))) is not None:
        raise ValueError(
            f"block_table: expected pages for columns {int(begin[row])} … {int(end[row]) - 1} of row {row}, got {block_table[row].tolist()}"
        )


def check_append(key_cache: torch.Tensor, new: int, lengths: torch.Tensor, block_table: torch.Tensor | None) -> None:
    """Every row has room for ``new`` columns."""
    if block_table is not None:
        check_pages(block_table, len(key_cache))
    capacity = key_cache.shape[2] * (1 if block_table is None else block_table.shape[1])
    if (row := _first(lengths > capacity - new if new <= capacity else lengths >= 0)) is not None:
        raise ValueError(f"lengths: expected at most {capacity - new} (capacity {capacity}, {new} new columns), got {int(lengths[row])} in row {row}")
    _check_columns("lengths", block_table, key_cache, lengths, torch.where(lengths < 0, lengths, lengths + new))


def check_gather(keys: torch.Tensor, key_pages: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor) -> None:
    """Every row has its columns, and there is room for them."""
    check_pages(block_table, len(key_pages))
    if (row := _first(lengths > keys.shape[2])) is not None:
        raise ValueError(f"lengths: expected at most {keys.shape[2]} (columns of keys), got {int(lengths[row])} in row {row}")
    _check_columns("lengths", block_table, key_pages, torch.zeros_like(lengths), lengths)


def check_rollback(
    lengths: torch.Tensor, new_lengths: torch.Tensor, window: int, block_table: torch.Tensor | None, free_list: torch.Tensor | None, page_size: int
) -> None:
    """No row gets longer than what was written."""
    if block_table is not None and free_list is not None:
        check_pages(block_table, len(free_list) - 1, free_list)
    asked = (lengths >= 0) & (new_lengths >= 0)
    if (row := _first(asked & (new_lengths - window > lengths))) is not None:
        limit = f"{int(lengths[row])} + {window}"
        raise ValueError(f"new_lengths: expected at most {limit} (length + window) in row {row}, got {int(new_lengths[row])}")
    if page_size >= 0:
        capacity = page_size if block_table is None else page_size * block_table.shape[1]
        if (row := _first(asked & (new_lengths > capacity))) is not None:
            raise ValueError(f"new_lengths: expected at most {capacity} (the capacity), got {int(new_lengths[row])} in row {row}")


def check_compact_rows(caches: Sequence[torch.Tensor], lengths: torch.Tensor, rows: torch.Tensor) -> None:
    """Every source exists."""
    if (slot := _first(rows >= len(lengths))) is not None:
        raise ValueError(f"rows: expected rows below {len(lengths)}, got {int(rows[slot])} for slot {slot}")
    if caches and (row := _first(lengths > caches[0].shape[2])) is not None:
        raise ValueError(f"lengths: expected at most {caches[0].shape[2]} (the capacity), got {int(lengths[row])} in row {row}")


def check_compact_columns(caches: Sequence[torch.Tensor], lengths: torch.Tensor, columns: torch.Tensor, block_table: torch.Tensor | None) -> None:
    """Every column chosen, and the one it goes to, exists."""
    if not caches:
        return
    if block_table is not None:
        check_pages(block_table, len(caches[0]))
    capacity = caches[0].shape[2] * (1 if block_table is None else block_table.shape[1])
    asked = (columns >= 0) & (lengths >= 0)[:, None]
    slots = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    furthest = torch.maximum(columns, slots)
    if (row := _first((asked & (furthest > capacity - 1 - lengths[:, None].clamp(max=capacity))).any(1))) is not None:
        raise ValueError(
            f"columns: expected length + column below {capacity}, got length {int(lengths[row])} and columns {columns[row].tolist()} in row {row}"
        )
    for index in (columns, slots):
        for c in range(columns.shape[1]):
            begin = torch.where(asked[:, c], lengths + index[:, c], 0)
            _check_columns("columns", block_table, caches[0], begin, begin + asked[:, c])


def check_reserve(block_table: torch.Tensor, free_list: torch.Tensor, lengths: torch.Tensor, count: int, page_size: int) -> None:
    """The table is wide enough, and there are enough free pages."""
    check_pages(block_table, len(free_list) - 1, free_list)
    capacity = block_table.shape[1] * page_size
    if (row := _first((lengths >= 0) & (lengths > capacity - count))) is not None:
        raise ValueError(
            f"lengths: expected at most {capacity - count} (capacity {capacity}, {count} new columns), got {int(lengths[row])} in row {row}"
        )
    entries = torch.arange(block_table.shape[1], device=lengths.device)
    needed = torch.where(lengths >= 0, (lengths + count + page_size - 1) // page_size, 0)
    missing = int(((entries < needed[:, None]) & (block_table < 0)).sum())
    if missing > int(free_list[0]):
        raise ValueError(f"free_list: expected at least {missing} free pages, got {int(free_list[0])}")


def check_compact_table(block_table: torch.Tensor, free_list: torch.Tensor, rows: torch.Tensor) -> None:
    """Every source exists and goes to one slot."""
    check_pages(block_table, len(free_list) - 1, free_list)
    if (slot := _first(rows >= len(block_table))) is not None:
        raise ValueError(f"rows: expected rows below {len(block_table)}, got {int(rows[slot])} for slot {slot}")
    source = torch.where(rows < 0, torch.arange(len(rows), device=rows.device), rows)
    if len(source.unique()) < len(source):
        raise ValueError(f"rows: expected every row once (pages are not shared), got {source.tolist()}")
