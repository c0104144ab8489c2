"""One layer's attention by itself, on random numbers: to be compared and timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch

from ..cache import RaggedCache
from ..clock import now
from ..recording import Recorder, replaying
from .interface import attention_function, attention_mask
from .shape import AttentionShape

__all__ = ["Layer"]


class Layer:
    """One layer's attention on random queries, keys and values, halfway through the cache."""

    def __init__(self, shape: AttentionShape, device: torch.device, rows: int, inputs: int, columns: int, timesteps: int):
        generator = torch.Generator(device).manual_seed(0)

        def states(heads: int, length: int) -> torch.Tensor:  # laid out as projections and the cache lay them out
            made = torch.randn(rows, length, heads, shape.width, generator=generator, device=device)
            return made.to(shape.dtype).transpose(1, 2)

        self.device, self.inputs = device, inputs
        self.module = SimpleNamespace(training=False, is_causal=True, num_key_value_groups=shape.heads // shape.groups)
        self.cache = RaggedCache(0, rows, columns, device=device)
        self.cache.lengths.fill_((columns - inputs) // 2)
        self.cache.extent = (columns + inputs) // 2
        if timesteps:
            slot = torch.arange(inputs - timesteps, device=device)
            self.cache.levels = (slot >= len(slot) // 2).long().expand(rows, -1)  # a clean front, and noise of one level
        extent = self.cache.extent
        self.query, self.keys, self.values = states(shape.heads, inputs), states(shape.groups, extent), states(shape.groups, extent)
        self.scale = shape.width**-0.5

    def call(self, name: str) -> Callable[[], torch.Tensor]:
        """The attention, to be called; its mask, which a forward makes once for all layers, is there."""
        mask, attend = attention_mask(name, self.cache, self.inputs), attention_function(name)
        return lambda: attend(self.module, self.query, self.keys, self.values, mask, dropout=0.0, scaling=self.scale)[0]

    def seconds(self, name: str, record: Recorder | None = None, layers: int = 16, repeats: int = 3) -> float:
        """Median time of ``layers`` calls one after the other; with a recorder of their replay, which does not wait for Python."""
        call = self.call(name)

        def forward() -> None:
            for _ in range(layers):
                call()

        run, taken = replaying(forward, record), []
        for attempt in range(1 + repeats):
            started = now(self.device)
            run()
            if attempt:  # the first one warms up
                taken.append(now(self.device) - started)
        return statistics.median(taken)
