"""``window="auto"``: the window that makes most tokens per second, found by decoding with some.

A wider window commits more tokens per forward, and its forward takes longer. How long is measured before the first image, on forwards over
nothing; how many tokens, and what an iteration takes beside its forward, is taken from the images that were decoded before. A row's tokens have
no part in the choice of its own window, so what is drawn stays exact (condition 4 of the theorem in docs/exactness.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..attention import choose_attention
from ..clock import now
from ..recording import Recorder, replaying
from .layout import TokenLayout
from .model import DecodableModel

__all__ = ["WINDOWS", "WindowChooser", "forward_seconds"]

#: Windows that are chosen from.
WINDOWS = (8, 16, 32, 64, 96, 128)


def _rule_of_thumb(window: int) -> float:
    """Where to begin. Tokens per forward up to a factor: half of what is possible at 8 drafts, as the embedded model has it with ``mc-sjd``."""
    return window / (window + 8)


@dataclass
class _Evidence:
    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass
class WindowChooser:
    """Chooses among windows whose forwards take ``seconds``."""

    seconds: Mapping[int, float]
    _seen: dict[int, _Evidence] = field(default_factory=dict)

    def learn(self, window: int, tokens: int, forwards: int, seconds: float) -> None:
        """An image took so many forwards and seconds."""
        evidence = self._seen.setdefault(window, _Evidence())
        evidence.tokens += tokens
        evidence.forwards += forwards
        evidence.seconds += seconds

    def tokens_per_forward(self, window: int) -> float:
        """Measured, or else no less than it can be: tokens grow with the window, but not faster."""
        if (seen := self._seen.get(window)) is not None:
            return seen.tokens / seen.forwards
        if not self._seen:
            return _rule_of_thumb(window)
        measured = {other: self.tokens_per_forward(other) for other in self._seen}
        return min([window, *(tokens * max(window / other, 1.0) for other, tokens in measured.items())])

    def seconds_per_iteration(self, window: int) -> float:
        """Measured, or else the forward's and what an iteration has taken beside it."""
        if (seen := self._seen.get(window)) is not None:
            return seen.seconds / seen.forwards
        forwards = sum(one.forwards for one in self._seen.values())
        beside = sum(one.seconds - one.forwards * self.seconds[other] for other, one in self._seen.items())
        return self.seconds[window] + max(beside / forwards, 0.0) if forwards else self.seconds[window]

    def best(self) -> int:
        """The window to decode the next images with: one that was tried, or next to such a one."""
        windows = sorted(self.seconds)
        near = [window for i, window in enumerate(windows) if not self._seen or self._seen.keys() & windows[max(i - 1, 0) : i + 2]]
        return max(near, key=lambda window: self.tokens_per_forward(window) / self.seconds_per_iteration(window))

    @property
    def settled(self) -> bool:
        """Whether the best window has been tried, so that more images would be decoded with no other."""
        return self.best() in self._seen


def forward_seconds(
    model: DecodableModel, layout: TokenLayout, windows: Sequence[int], rows: int, attention: str = "auto", record: Recorder | None = None
) -> dict[int, float]:
    """Seconds of a forward of ``rows`` model rows over each window, halfway through an image of ``layout``; the fastest of three.

    With a recorder of its replay: operation by operation, a GPU that waits for Python takes the same for every window.
    """
    columns, device = layout.forced.shape[1], layout.forced.device
    seconds = dict.fromkeys(windows, math.inf)
    with torch.inference_mode():
        cache = model.new_cache(rows, columns + max(windows))
        cache.begin_image(torch.ones(rows, dtype=torch.int64, device=device), columns, layout.places)
        cache.lengths.fill_(columns // 2)
        embeddings = model.image_embeddings()
        inputs = embeddings.new_zeros(rows, max(windows), embeddings.shape[1])

        def forward(window: int) -> None:
            cache.extent, cache.attention = columns // 2 + window, attentions[window]
            model.forward(inputs[:, :window], cache)

        choose = functools.partial(choose_attention, attention, model.attention_shape, device, rows=rows, timesteps=0, record=record)
        attentions = {window: choose(inputs=window, columns=columns + window) for window in windows}
        forwards = {window: replaying(functools.partial(forward, window), record) for window in windows}
        for attempt in range(4):
            for window, run in forwards.items():
                started = now(device)
                run()
                if attempt:  # the first one warms up
                    seconds[window] = min(seconds[window], now(device) - started)
    return seconds
