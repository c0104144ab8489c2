"""A Transformers ``Cache`` whose rows have their own lengths: static buffers, in-place appends, rollback without a copy."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sjd2_kernels import kv_append, kv_compact, kv_rollback
from sjd2_kernels.attention import window_mask

__all__ = ["RaggedCache"]


class Rows:
    """What the layers of a cache share: their lengths, a flag per row that found no room on a GPU, and who computes their attention."""

    def __init__(self, rows: int, capacity: int, device: torch.device | str):
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.overflow = torch.zeros(rows, dtype=torch.bool, device=device)
        self.capacity = self.extent = capacity
        self.attention = "model"

    def keep(self, count: int) -> None:
        """Forget the rows from ``count`` on."""
        self.lengths, self.overflow = self.lengths[:count], self.overflow[:count]


def new_buffer(rows: int, columns: int, states: torch.Tensor) -> torch.Tensor:
    """``[rows, H, columns, D]`` for columns such as ``states [R, H, W, D]`` has.

    Heads lie inside columns if they do in ``states``, as projections make them: what is appended then is one piece of memory. It holds
    zeros, for columns beyond a row's length are masked, and 0 · garbage must not become NaN.
    """
    _, heads, _, width = states.shape
    if states.stride(1) < states.stride(2):
        return states.new_zeros(rows, columns, heads, width).transpose(1, 2)
    return states.new_zeros(rows, heads, columns, width)


def rotary_positions(columns: torch.Tensor, starts: torch.Tensor | None, places: torch.Tensor | None) -> torch.Tensor:
    """Positions of sequence ``columns [R, T]``: the same, or, where ``places [A, M]`` says where image tokens stand, ``[A, R, T]``.

    A prompt's columns (below ``starts [R]``) are their own positions along every axis, and places count from the image's first token.
    """
    if places is None or starts is None:
        return columns
    token = columns - starts[:, None]
    return torch.where(token < 0, columns, starts[:, None] + places[:, token.clamp(0, places.shape[1] - 1)])


class RaggedLayer(CacheLayerMixin):
    """One layer's buffers ``[R, H, S, D]``, allocated at the first update from the shapes the model passes."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, rows: Rows):
        super().__init__()
        self.rows = rows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, columns = len(key_states), self.rows.capacity
        self.keys, self.values = new_buffer(rows, columns, key_states), new_buffer(rows, columns, value_states)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        kv_append(self.keys, self.values, key_states, value_states, self.rows.lengths, overflow=self.rows.overflow)
        extent = self.rows.extent
        return self.keys[:, :, :extent], self.values[:, :, :extent]

    def admit(self, rows: torch.Tensor, other: RaggedLayer) -> None:
        """Let ``rows`` begin with the columns of ``other``."""
        if other.is_initialized:
            columns = other.keys.shape[2]
            self.keys[rows, :, :columns], self.values[rows, :, :columns] = other.keys, other.values

    def keep(self, count: int) -> None:
        """Forget the rows from ``count`` on."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:count], self.values[:count]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows.extent, 0

    def get_seq_length(self) -> int:
        # Rows differ, so there is no one length; the decoder passes positions and masks and nothing asks for it.
        return 0

    def get_max_length(self) -> int:
        return self.rows.capacity

    def get_max_cache_shape(self) -> int:  # the name before Transformers 5.16
        return self.rows.capacity


class RaggedCache(Cache):
    """Keys and values of R model rows, each valid up to its own length.

    A forward over W inputs writes W columns behind every row's length; they stay invalid until :meth:`commit` moves
    the length over those that are final. Forgetting the rest costs nothing: the next forward writes over them.

    Args:
        layers: number of attention layers.
        rows: R.
        capacity: S, columns per row; must hold prompt, image and one window.
        device: of the buffers.

    Attributes:
        lengths: int64 ``[R]``, valid columns per row.
        overflow: bool ``[R]``, rows that had no room for a window on a GPU, where nobody raises; their tokens are worthless.
        starts: int64 ``[R]``: columns of the row's prompt; ``None`` until :meth:`begin_image`.
        levels: ``None``, or int64 ``[R, W]``: noise levels of the window's inputs in the next forward, whose other inputs are timestep tokens.
        attention: who computes the attention of the next forwards; see ``sjd2.attention``.
    """

    _rows: Rows

    def __init__(self, layers: int, rows: int, capacity: int, *, device: torch.device | str = "cpu"):
        self._rows = self._new_rows(rows, capacity, device)
        self.capacity = capacity
        self.levels: torch.Tensor | None = None
        self.starts: torch.Tensor | None = None
        self.count = 0
        self.places: torch.Tensor | None = None
        self._layers = [self._layer(index) for index in range(layers)]
        super().__init__(layers=[*self._layers])

    def _new_rows(self, rows: int, capacity: int, device: torch.device | str) -> Rows:
        return Rows(rows, capacity, device)

    def _layer(self, index: int) -> RaggedLayer:
        return RaggedLayer(self._rows)

    @property
    def lengths(self) -> torch.Tensor:
        """See the class."""
        return self._rows.lengths

    @property
    def overflow(self) -> torch.Tensor:
        """See the class."""
        return self._rows.overflow

    @property
    def extent(self) -> int:
        """Columns that the next forward sees, those that it writes included: all there are, or fewer if no row has more that are valid."""
        return self._rows.extent

    @extent.setter
    def extent(self, columns: int) -> None:
        self._rows.extent = min(columns, self.capacity)

    @property
    def attention(self) -> str:
        """See the class."""
        return self._rows.attention

    @attention.setter
    def attention(self, name: str) -> None:
        self._rows.attention = name

    def pages(self, inputs: int) -> torch.Tensor | None:
        """int64 ``[R, M]``, the pages of the columns that the next ``inputs`` see, where attention reads pages."""
        return None

    def begin_image(self, starts: torch.Tensor, count: int, places: torch.Tensor | None) -> None:
        """Tell that images of ``count`` tokens begin at ``starts`` (int64 ``[R]``), at ``places`` (see ``TokenLayout``) along the rotary axes."""
        self.starts, self.count, self.places = starts.clone(), count, places

    def commit(self, counts: torch.Tensor) -> None:
        """Make the first ``counts[r]`` (int64 ``[R]``) columns of the last forward valid; the others are rolled back."""
        kv_rollback(self.lengths, self.lengths + counts, window=self.capacity)

    def compact(self, rows: torch.Tensor) -> None:
        """Keep ``rows`` (int64 ``[R']``, R' ≤ R), in this order, and forget the others."""
        buffers = [buffer for layer in self._layers if layer.is_initialized for buffer in (layer.keys, layer.values)]
        kv_compact(buffers, self.lengths, rows)
        self._keep(rows)

    def admit(self, rows: torch.Tensor, other: RaggedCache) -> None:
        """Let ``rows`` (int64 ``[R']``) forget what they hold and take up the columns of a cache of R' rows, all of them dense, and its images."""
        for layer, its in zip(self._layers, other._layers, strict=True):
            layer.admit(rows, its)
        self._take_over(rows, other)

    def _take_over(self, rows: torch.Tensor, other: RaggedCache) -> None:
        self.lengths[rows], self.overflow[rows] = other.lengths, other.overflow
        if self.starts is not None and other.starts is not None:
            self.starts[rows] = other.starts

    def _keep(self, rows: torch.Tensor) -> None:
        self._rows.overflow = self._rows.overflow[rows]
        self.starts = None if self.starts is None else self.starts[rows]
        self._rows.keep(len(rows))
        for layer in self._layers:
            layer.keep(len(rows))

    def reset(self) -> None:
        """Forget everything, buffers and lengths."""
        super().reset()
        self.starts = self.places = None
        self.lengths.zero_()
        self.overflow.zero_()

    def positions(self, inputs: int) -> torch.Tensor:
        """Positions ``[R, inputs]`` of the next inputs, or ``[A, R, inputs]`` along A rotary axes; those of timestep tokens are 0."""
        ahead = torch.arange(inputs, device=self.lengths.device)
        columns = self.lengths[:, None] + ahead
        if self.starts is not None:  # slots behind an image's end, on which nothing depends, take no positions of their own
            columns = columns.minimum(self.starts[:, None] + self.count - 1)
        positions = rotary_positions(columns, self.starts, self.places)
        return positions if self.levels is None else positions.masked_fill(ahead >= self.levels.shape[1], 0)

    def mask(self, inputs: int) -> torch.Tensor:
        """bool ``[R, 1, inputs, S]``: what each of the next inputs sees; see :func:`sjd2_kernels.attention.window_mask`."""
        return window_mask(self.lengths, self.levels, inputs, self.extent)[:, None]
