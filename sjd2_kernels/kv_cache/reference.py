"""The definitions of the cache ops in PyTorch: what every other implementation must do, bit for bit.

A dense cache ``[R, H, S, D]`` is a pool of R pages of S columns, of which row r has page r; with a block table a row has several pages.
Nothing here makes the host wait for a device, so rows and columns that are skipped cannot be filtered out. Instead, what is written
for them is a second copy of something that is written anyway (or, if there is nothing, what stands there already): writing the same
value twice is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["append", "compact_columns", "compact_rows", "compact_table", "gather", "reserve", "rollback"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(cache: torch.Tensor) -> torch.Tensor:
    """``[N, P, H, D]`` view of ``[N, H, P, D]`` as integers: PyTorch cannot index every dtype."""
    return cache.view(_INTEGERS[cache.element_size()]).transpose(1, 2)


def _mark(overflow: torch.Tensor | None, rows: torch.Tensor) -> None:
    if overflow is not None:
        overflow |= rows


def _locate(cache: torch.Tensor, block_table: torch.Tensor | None, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Page and slot of ``columns`` (int64 ``[R, C]``, absolute), clamped into the cache, and where that was not needed."""
    page_size, pages = cache.shape[2], cache.shape[0]
    if block_table is None:
        page = torch.arange(len(columns), device=columns.device)[:, None].expand_as(columns)
        inside = (columns >= 0) & (columns < page_size)
        return page, columns.clamp(0, page_size - 1), inside
    entry = columns // page_size
    inside = (columns >= 0) & (entry < block_table.shape[1])
    page = block_table.gather(1, entry.clamp(0, block_table.shape[1] - 1))
    inside &= (page >= 0) & (page < pages)
    return page.clamp(0, pages - 1), columns % page_size, inside


def _write(cache: torch.Tensor, page: torch.Tensor, slot: torch.Tensor, new: torch.Tensor, wanted: torch.Tensor) -> None:
    """``cache[page, :, slot] = new`` where ``wanted``; indices ``[R, C]``, ``new [R, C, H, D]`` as integers."""
    if wanted.numel() == 0 or cache.numel() == 0:
        return
    stored = _bits(cache)
    page, slot, new, wanted = page.reshape(-1), slot.reshape(-1), new.reshape(-1, *new.shape[2:]), wanted.reshape(-1)
    some = wanted.long().argmax()
    pick = torch.where(wanted, torch.arange(len(wanted), device=wanted.device), some)
    page, slot = page[pick], slot[pick]
    stored[page, slot] = torch.where(wanted[some], new[pick], stored[page, slot])


def append(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    overflow: torch.Tensor | None,
) -> None:
    """Column ``lengths[r] + w`` of row r := column w of ``keys[r]`` and ``values[r]``."""
    columns = lengths[:, None] + torch.arange(keys.shape[2], device=lengths.device)
    page, slot, inside = _locate(key_cache, block_table, columns)
    fits = inside.all(1)
    _mark(overflow, ~fits & (lengths >= 0))
    wanted = (fits & (lengths >= 0))[:, None].expand_as(columns)
    for cache, new in ((key_cache, keys), (value_cache, values)):
        _write(cache, page, slot, _bits(new), wanted)


def gather(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    overflow: torch.Tensor | None,
) -> None:
    """Columns below ``lengths[r]`` of row r, copied from its pages to row r of ``keys`` and ``values``."""
    capacity = keys.shape[2]
    columns = torch.arange(capacity, device=lengths.device).expand(len(lengths), -1)
    page, slot, inside = _locate(key_pages, block_table, columns)
    fits = (inside | (columns >= lengths[:, None])).all(1) & (lengths <= capacity)
    _mark(overflow, ~fits & (lengths >= 0))
    wanted = fits[:, None] & (columns < lengths[:, None])
    if wanted.numel() == 0 or key_pages.numel() == 0:
        return
    for dense, pool in ((keys, key_pages), (values, value_pages)):
        _bits(dense).copy_(torch.where(wanted[..., None, None], _bits(pool)[page, slot], _bits(dense)))


def rollback(
    lengths: torch.Tensor,
    new_lengths: torch.Tensor,
    caches: Sequence[torch.Tensor],
    window: int,
    block_table: torch.Tensor | None,
    free_list: torch.Tensor | None,
    page_size: int,
    overflow: torch.Tensor | None,
) -> None:
    """``lengths := new_lengths``; columns ``new_lengths[r] … lengths[r] + window − 1`` become zero; pages without a valid column go back."""
    asked = (lengths >= 0) & (new_lengths >= 0)
    fits = new_lengths - window <= lengths
    if page_size >= 0:
        capacity = page_size if block_table is None else page_size * block_table.shape[1]
        fits &= new_lengths <= capacity
    _mark(overflow, asked & ~fits)
    done = asked & fits
    if caches:
        columns = torch.arange(capacity, device=lengths.device).expand(len(lengths), -1)
        page, slot, inside = _locate(caches[0], block_table, columns)
        dropped = done[:, None] & (columns >= new_lengths[:, None]) & (columns - window < lengths[:, None]) & inside
        for cache in caches:
            zeros = torch.zeros((), dtype=_bits(cache).dtype, device=cache.device)
            _write(cache, page, slot, zeros.expand(*columns.shape, cache.shape[1], cache.shape[3]), dropped)
    if block_table is not None and free_list is not None:
        kept = torch.where(done, (new_lengths + page_size - 1) // page_size, block_table.shape[1])
        _give_back(block_table, free_list, torch.arange(block_table.shape[1], device=lengths.device) >= kept[:, None])
    lengths.copy_(torch.where(done, new_lengths, lengths))


def compact_rows(caches: Sequence[torch.Tensor], lengths: torch.Tensor, rows: torch.Tensor, overflow: torch.Tensor | None) -> None:
    """The valid columns of row i, and its length, := those of row ``rows[i]``, for all i at once; rows behind the last become empty."""
    count = len(rows)
    slots = torch.arange(count, device=rows.device)
    exists = rows < len(lengths)
    source = torch.where((rows >= 0) & exists, rows, slots)
    if overflow is not None:
        overflow[:count] |= ~exists
    old_lengths = lengths[source]
    for cache in caches:
        stored = _bits(cache)
        valid = torch.arange(stored.shape[1], device=rows.device) < old_lengths[:, None]
        stored[:count] = torch.where(valid[..., None, None], stored[source], stored[:count])
    lengths.zero_()
    lengths[:count] = old_lengths


def compact_columns(
    caches: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    columns: torch.Tensor,
    block_table: torch.Tensor | None,
    overflow: torch.Tensor | None,
) -> None:
    """Column ``lengths[r] + c`` of row r := column ``lengths[r] + columns[r, c]``, for all c at once."""
    if not caches:
        return
    base = lengths[:, None]
    from_page, from_slot, from_inside = _locate(caches[0], block_table, base + columns)
    to_page, to_slot, to_inside = _locate(caches[0], block_table, base + torch.arange(columns.shape[1], device=lengths.device))
    asked = (base >= 0) & (columns >= 0)
    fits = (from_inside & to_inside | ~asked).all(1)
    _mark(overflow, ~fits)
    for cache in caches:
        if cache.numel():
            _write(cache, to_page, to_slot, _bits(cache)[from_page, from_slot], asked & fits[:, None])


def _give_back(block_table: torch.Tensor, free_list: torch.Tensor, entries: torch.Tensor) -> None:
    """Move the pages of ``entries`` (bool, as the table) to the free list, the first in the order of rows and columns on top."""
    returned = (entries & (block_table >= 0)).reshape(-1)
    rank = returned.cumsum(0)
    count = free_list[0] + rank[-1:].sum()
    # Place 0 is the count, which is written last: what is not returned may go there.
    place = torch.where(returned, (count - rank + 1).clamp(max=len(free_list) - 1), 0)
    free_list.scatter_(0, place, block_table.reshape(-1))
    free_list[0] = count.clamp(max=len(free_list) - 1)
    block_table.masked_fill_(returned.view_as(block_table), -1)


def reserve(
    block_table: torch.Tensor, free_list: torch.Tensor, lengths: torch.Tensor, count: int, page_size: int, overflow: torch.Tensor | None
) -> None:
    """Fill the table up to column ``lengths[r] + count − 1`` from the top of the free list: rows in order, lower columns first."""
    entries = torch.arange(block_table.shape[1], device=lengths.device)
    fits = lengths <= block_table.shape[1] * page_size - count
    asked = (lengths >= 0) & fits
    needed = torch.where(asked, (lengths + count + page_size - 1) // page_size, 0)
    missing = (entries < needed[:, None]) & (block_table < 0)
    per_row = missing.sum(1)
    served = (per_row == 0) | (per_row.cumsum(0) <= free_list[0])
    _mark(overflow, (lengths >= 0) & ~(fits & served))
    missing &= served[:, None]
    rank = missing.reshape(-1).cumsum(0).view_as(block_table)
    taken = free_list[(free_list[0] - rank + 1).clamp(0, len(free_list) - 1)]
    block_table.copy_(torch.where(missing, taken, block_table))
    free_list[0] -= missing.sum()


def compact_table(
    block_table: torch.Tensor, free_list: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor, overflow: torch.Tensor | None
) -> None:
    """Row i of the table, and its length, := row ``rows[i]``, for all i at once. Pages of rows that nobody asks for go back.

    A row can go to one slot only (pages are not shared): the first that asks; the others, and those that ask for a row that does not
    exist, become empty and are marked.
    """
    size = len(block_table)
    slots = torch.arange(size, device=rows.device)
    source = torch.full_like(slots, -1)
    source[: len(rows)] = torch.where(rows < 0, slots[: len(rows)], rows)
    again = (source[:, None] == source) & (slots[:, None] > slots) & (source[:, None] >= 0)
    refused = (source >= size) | again.any(1)
    _mark(overflow, refused)
    source = torch.where(refused, -1, source)
    kept = (source[:, None] == slots).any(0)
    _give_back(block_table, free_list, ~kept[:, None].expand_as(block_table))
    empty = source < 0
    source = source.clamp(min=0)
    block_table.copy_(torch.where(empty[:, None], -1, block_table[source]))
    lengths.copy_(torch.where(empty, 0, lengths[source]))
