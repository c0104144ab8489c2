"""A Transformers ``Cache`` whose rows have their own lengths: static buffers, in-place appends, rollback without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sjd2_kernels import kv_append, kv_compact, kv_rollback

__all__ = ["ExtraColumns", "RaggedCache"]


@dataclass(frozen=True)
class ExtraColumns:
    """What the next forward is fed behind its window of W causal inputs: E inputs that other rules hold for.

    Attributes:
        offset: int64 ``[E]``, position behind the row's length; −1 for position 0, whatever the length.
        prefix: bool ``[E]``, whether the input sees the valid columns.
        visible: bool ``[R, W + E, W + E]``, which of the new inputs sees which.
    """

    offset: torch.Tensor
    prefix: torch.Tensor
    visible: torch.Tensor


class Rows:
    """What the layers of a cache share: their lengths, and a flag per row that found no room on a GPU."""

    def __init__(self, rows: int, capacity: int, device: torch.device | str):
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.overflow = torch.zeros(rows, dtype=torch.bool, device=device)
        self.capacity = capacity

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
        return self.keys, self.values

    def keep(self, count: int) -> None:
        """Forget the rows from ``count`` on."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:count], self.values[:count]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows.capacity, 0

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
        extra: inputs of the next forward that do not follow each other causally, if there are any.
    """

    _rows: Rows

    def __init__(self, layers: int, rows: int, capacity: int, *, device: torch.device | str = "cpu"):
        self._rows = self._new_rows(rows, capacity, device)
        self.capacity = capacity
        self.extra: ExtraColumns | None = None
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

    def commit(self, counts: torch.Tensor) -> None:
        """Make the first ``counts[r]`` (int64 ``[R]``) columns of the last forward valid; the others are rolled back."""
        kv_rollback(self.lengths, self.lengths + counts, window=self.capacity)

    def compact(self, rows: torch.Tensor) -> None:
        """Keep ``rows`` (int64 ``[R']``, R' ≤ R), in this order, and forget the others."""
        buffers = [buffer for layer in self._layers if layer.is_initialized for buffer in (layer.keys, layer.values)]
        kv_compact(buffers, self.lengths, rows)
        self._keep(rows)

    def _keep(self, rows: torch.Tensor) -> None:
        self._rows.overflow = self._rows.overflow[rows]
        self._rows.keep(len(rows))
        for layer in self._layers:
            layer.keep(len(rows))

    def reset(self) -> None:
        """Forget everything, buffers and lengths."""
        super().reset()
        self.lengths.zero_()
        self.overflow.zero_()

    def positions(self, inputs: int) -> torch.Tensor:
        """Sequence positions ``[R, inputs]`` of the next inputs."""
        ahead = torch.arange(inputs, device=self.lengths.device)
        if self.extra is None:
            return self.lengths[:, None] + ahead
        ahead = torch.cat([ahead[: inputs - len(self.extra.offset)], self.extra.offset])
        return torch.where(ahead < 0, 0, self.lengths[:, None] + ahead)

    def mask(self, inputs: int) -> torch.Tensor:
        """bool ``[R, 1, inputs, S]``: each of the next inputs sees the valid columns, the inputs before it, and itself, or what ``extra`` says."""
        columns = torch.arange(self.capacity, device=self.lengths.device)
        ahead = torch.arange(inputs, device=self.lengths.device)
        if self.extra is None:
            return (columns <= (self.lengths[:, None] + ahead)[..., None])[:, None]
        new = (columns - self.lengths[:, None])[:, None].expand(-1, inputs, -1)  # counted from the first new input
        sees_prefix = torch.cat([torch.ones_like(ahead[: inputs - len(self.extra.prefix)], dtype=torch.bool), self.extra.prefix])
        among_new = self.extra.visible.gather(2, new.clamp(0, inputs - 1))
        return torch.where(new < 0, sees_prefix[:, None], among_new & (new < inputs))[:, None]
