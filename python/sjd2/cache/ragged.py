"""A Transformers ``Cache`` whose rows have their own lengths: static buffers, in-place appends, rollback without a copy."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sjd2_kernels import kv_append

__all__ = ["RaggedCache"]


class _RaggedLayer(CacheLayerMixin):
    """One layer's buffers ``[R, H, S, D]``, allocated at the first update from the shapes the model passes."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, lengths: torch.Tensor, capacity: int):
        super().__init__()
        self.lengths, self.capacity = lengths, capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def buffer(states: torch.Tensor) -> torch.Tensor:
            rows, heads, _, width = states.shape
            # Zeros: columns beyond a row's length are masked, and 0 · garbage must not become NaN.
            return states.new_zeros(rows, heads, self.capacity, width)

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        kv_append(self.keys, self.values, key_states, value_states, self.lengths)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.capacity, 0

    def get_seq_length(self) -> int:
        # Rows differ, so there is no one length; the decoder passes positions and masks and nothing asks for it.
        return 0

    def get_max_length(self) -> int:
        return self.capacity

    def get_max_cache_shape(self) -> int:  # the name before Transformers 5.16
        return self.capacity


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
    """

    def __init__(self, layers: int, rows: int, capacity: int, *, device: torch.device | str = "cpu"):
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.capacity = capacity
        super().__init__(layers=[_RaggedLayer(self.lengths, capacity) for _ in range(layers)])

    def commit(self, counts: torch.Tensor) -> None:
        """Make the first ``counts[r]`` (int64 ``[R]``) columns of the last forward valid; the others are rolled back."""
        self.lengths += counts

    def reset(self) -> None:
        """Forget everything, buffers and lengths."""
        super().reset()
        self.lengths.zero_()

    def positions(self, window: int) -> torch.Tensor:
        """Sequence positions ``[R, W]`` of the next ``window`` inputs."""
        return self.lengths[:, None] + torch.arange(window, device=self.lengths.device)

    def mask(self, window: int) -> torch.Tensor:
        """bool ``[R, 1, W, S]``: each of the next ``window`` inputs sees the valid columns, the inputs before it, and itself."""
        columns = torch.arange(self.capacity, device=self.lengths.device)
        return (columns <= self.positions(window)[..., None])[:, None]
