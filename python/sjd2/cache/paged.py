"""A :class:`RaggedCache` whose columns lie in pages that rows take from a common pool and give back.

What is gained is memory: the pool can be smaller than rows × capacity where lengths differ, and rows that are finished give their pages back. The
attention ``triton`` reads pages where they lie. Any other wants a row in one piece: for it every layer of every forward copies its valid columns
into a dense buffer first, a read and a write of the whole cache, as much as a cache that grows by concatenation pays. The tokens are the same.
"""

from __future__ import annotations

from typing import Any

import torch

from sjd2_kernels import paged_kv_append, paged_kv_compact, paged_kv_gather, paged_kv_reserve, paged_kv_rollback, paged_kv_tables

from .ragged import RaggedCache, RaggedLayer, Rows, new_buffer

__all__ = ["PagedCache"]


class PagedRows(Rows):
    """Lengths, block table and free list, and the dense buffers that the layers take turns in."""

    def __init__(self, rows: int, capacity: int, device: torch.device | str, page_size: int, pages: int | None):
        super().__init__(rows, capacity, device)
        self.page_size = page_size
        self.max_pages = -(-capacity // page_size)
        self.pages = rows * self.max_pages if pages is None else pages
        self.block_table, self.free_list = paged_kv_tables(rows, self.max_pages, self.pages, device=device)
        self.dense: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def read(self) -> bool:
        """Whether attention reads pages."""
        return self.attention == "triton"

    def reserve(self, inputs: int) -> None:
        """Take pages for the next inputs of every row."""
        paged_kv_reserve(self.block_table, self.free_list, self.lengths, inputs, page_size=self.page_size, overflow=self.overflow)

    def keep(self, count: int) -> None:
        super().keep(count)
        self.block_table = self.block_table[:count]
        if self.dense is not None:
            self.dense = self.dense[0][:count], self.dense[1][:count]

    def gather_into(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The dense buffers ``[R, H, S, D]``, made at their first use. Attention is done with one layer before the next begins."""
        if self.dense is None:
            rows = len(key_states)
            self.dense = new_buffer(rows, self.capacity, key_states), new_buffer(rows, self.capacity, value_states)
        return self.dense


class PagedLayer(RaggedLayer):
    """One layer's pools ``[N, H, P, D]``."""

    rows: PagedRows

    def __init__(self, rows: PagedRows, *, first: bool):
        super().__init__(rows)
        self.first = first

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pages, size = self.rows.pages, self.rows.page_size
        self.keys, self.values = new_buffer(pages, size, key_states), new_buffer(pages, size, value_states)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, window = self.rows, key_states.shape[2]
        if self.first and not rows.read:  # one table serves all layers; an attention that reads pages was told of it before
            rows.reserve(window)
        pools = self.keys, self.values
        paged_kv_append(*pools, key_states, value_states, rows.block_table, rows.lengths, overflow=rows.overflow)
        if rows.read:
            rows.dense = None  # a prompt's attention is the model's own
            return pools
        dense = rows.gather_into(key_states, value_states)
        paged_kv_gather(*dense, *pools, rows.block_table, rows.lengths + window, overflow=rows.overflow)
        return dense[0][:, :, : rows.extent], dense[1][:, :, : rows.extent]

    def keep(self, count: int) -> None:
        """Pools have no rows."""


class PagedCache(RaggedCache):
    """See the module. Used like a :class:`RaggedCache`.

    Args:
        layers: number of attention layers.
        rows: R.
        capacity: S, columns per row; must hold prompt, image and one window.
        device: of the buffers.
        page_size: P, columns per page.
        pages: N, pages in the pool; default: enough for all rows at full length.
    """

    _rows: PagedRows

    def __init__(self, layers: int, rows: int, capacity: int, *, device: torch.device | str = "cpu", page_size: int = 16, pages: int | None = None):
        self._page_size, self._pages = page_size, pages
        super().__init__(layers, rows, capacity, device=device)

    def _new_rows(self, rows: int, capacity: int, device: torch.device | str) -> Rows:
        return PagedRows(rows, capacity, device, self._page_size, self._pages)

    def _layer(self, index: int) -> RaggedLayer:
        return PagedLayer(self._rows, first=index == 0)

    def pages(self, inputs: int) -> torch.Tensor | None:
        """See :meth:`RaggedCache.pages`; the inputs' own are taken from the pool first."""
        rows = self._rows
        if not rows.read:
            return None
        rows.reserve(inputs)
        return rows.block_table[:, : -(-rows.extent // rows.page_size)]

    def commit(self, counts: torch.Tensor) -> None:
        """See :meth:`RaggedCache.commit`; pages that hold no valid column go back to the pool."""
        rows = self._rows
        paged_kv_rollback(rows.block_table, rows.free_list, rows.lengths, rows.lengths + counts, page_size=rows.page_size, window=self.capacity)

    def compact(self, rows: torch.Tensor) -> None:
        """See :meth:`RaggedCache.compact`; no column moves."""
        paged_kv_compact(self._rows.block_table, self._rows.free_list, self.lengths, rows)
        self._keep(rows)

    def admit(self, rows: torch.Tensor, other: RaggedCache) -> None:
        """See :meth:`RaggedCache.admit`; what the rows held goes back to the pool first."""
        own = self._rows
        emptied = own.lengths.index_fill(0, rows, 0)
        paged_kv_rollback(own.block_table, own.free_list, own.lengths, emptied, page_size=own.page_size)
        table, lengths, overflow = own.block_table[rows], torch.zeros_like(other.lengths), other.overflow
        columns = other.capacity
        paged_kv_reserve(table, own.free_list, lengths, columns, page_size=own.page_size, overflow=overflow)
        for layer, its in zip(self._layers, other._layers, strict=True):
            if its.is_initialized:
                paged_kv_append(layer.keys, layer.values, its.keys, its.values, table, lengths, overflow=overflow)
        paged_kv_rollback(table, own.free_list, lengths, other.lengths, page_size=own.page_size, window=columns)
        own.block_table[rows] = table
        self._take_over(rows, other)

    def reset(self) -> None:
        """Forget everything: all pages are free."""
        super().reset()
        rows = self._rows
        table, free_list = paged_kv_tables(len(rows.lengths), rows.max_pages, rows.pages)
        rows.block_table.copy_(table)
        rows.free_list.copy_(free_list)
