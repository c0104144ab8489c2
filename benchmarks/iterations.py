"""One iteration of the decode loop halfway through an image, timed whole and by its parts.

Every iteration begins at the same place: lengths and counters are put back before each, so that attention reads what it reads halfway through an
image, and rows never end. On a GPU the parts are timed inside the recorded graph, by events that are nodes of it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from model_sizes import Size
from timing import call_times

from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.attention import choose_attention
from sjd2.bench.memory import PeakMemory
from sjd2.cache import CACHES, RaggedCache
from sjd2.decoding import Preset, TokenLayout
from sjd2.decoding.graphs import Eager, Graphed
from sjd2.decoding.parts import PARTS, watch_parts
from sjd2.decoding.state import Plan, WindowState, begin
from sjd2.recording import record_cuda_graph
from sjd2_kernels import LogitsProcessing

#: Iterations before those that count: what is made at its first use, and on a GPU the recording.
WARM_UP = 3


class Clock:
    """Milliseconds inside of named spans: of the last replay where they were recorded in a graph, else since ``clear``."""

    def __init__(self, device: torch.device):
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, external=torch.cuda.is_current_stream_capturing())
        event.record()
        return event

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def clear(self) -> None:
        """Forget the spans so far."""
        self._spans.clear()

    def read(self) -> dict[str, float]:
        """Sums by name; the host waits for a GPU."""
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
        found: dict[str, float] = {}
        for name, start, end in self._spans:
            found[name] = found.get(name, 0.0) + (start.elapsed_time(end) if cuda else 1e3 * (end - start))
        return found


def words(adapter: SlicedCausalLM, size: Size, batch: int, more: int = 0) -> torch.Tensor:
    """Random prompts and their partners, int64 ``[2B, P + more]``, which end alike."""
    ids = torch.randint(adapter.text_config.vocab_size, (2 * batch, size.prompt + more), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = ids[0, -1]
    return ids


@dataclass
class Halfway:
    """A run of ``batch`` images with guidance that stands still halfway through them."""

    plan: Plan
    state: WindowState
    cache: RaggedCache
    place: int
    columns: int
    begun: bool = False

    @classmethod
    def of(cls, adapter: SlicedCausalLM, size: Size, preset: Preset, batch: int, processing: LogitsProcessing) -> Halfway:
        """With prompts of random words behind it."""
        device, count = adapter.device, size.layout.forced.shape[1]
        forced = size.layout.forced.expand(batch, -1).to(device).contiguous()
        lengths = torch.full((batch,), count, device=device)
        layout = TokenLayout(forced, lengths, size.layout.row_stride, places=size.layout.places)
        structural = bool((forced >= adapter.vocab_size).any())
        seeds = torch.arange(batch, device=device)
        plan = Plan(adapter, layout, processing, preset, seeds, guided=True, structural=structural, cache=CACHES["ragged"], compact=False)
        prompt = adapter.prompt_from_ids(words(adapter, size, batch).tolist())
        capacity = size.prompt - 1 + count + preset.window
        state, cache = begin(plan, prompt, nullcontext(), capacity=capacity)
        sizes = {"rows": 2 * batch, "inputs": preset.window, "columns": capacity, "timesteps": 0}
        record = record_cuda_graph() if device.type == "cuda" else None
        cache.attention = choose_attention("auto", adapter.attention_shape, device, **sizes, record=record)
        place = count // 2
        # Not in place: these begin as the same tensors as others.
        state.committed, state.remaining = torch.full_like(lengths, place), lengths - place
        return cls(plan, state, cache, place, size.prompt - 1 + place)

    def put_back(self) -> None:
        """To where every iteration begins; in place, where graphs read."""
        self.cache.lengths.fill_(self.columns)
        if self.begun:
            self.state.committed.fill_(self.place)
            self.state.remaining.copy_(self.plan.layout.lengths - self.place)
        self.begun = True

    def run(self, advance: Any, times: int, around: Callable[[], Any]) -> list[Any]:
        """Iterate ``times`` times; what ``around`` gave just before and just after each."""
        marks = []
        needed = self.columns + self.plan.preset.window
        self.cache.extent = -(-needed // advance.columns) * advance.columns
        for _ in range(times):
            self.put_back()
            before = around()
            self.state = advance(self.plan, self.state, self.cache, nullcontext())  # type: ignore[arg-type]
            marks.append((before, around()))
        return marks


def _mark(device: torch.device) -> Callable[[], Any]:
    def mark() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return mark


def _medians(halfway: Halfway, advance: Eager | Graphed, iterations: int) -> float:
    """Milliseconds of an iteration, the median; the host does not wait between them."""
    device = halfway.plan.seeds.device
    marks = halfway.run(advance, WARM_UP + iterations, _mark(device))[WARM_UP:]
    if device.type != "cuda":
        return statistics.median(1e3 * (end - start) for start, end in marks)
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def _appends(halfway: Halfway) -> float:
    """Milliseconds of writing a window's keys and values into every layer of the cache, which a forward does on its way."""
    layers, window = halfway.cache.layers, halfway.plan.preset.window

    def new(buffer: torch.Tensor) -> torch.Tensor:
        rows, heads, _, width = buffer.shape
        return buffer.new_zeros(rows, window, heads, width).transpose(1, 2)  # as projections make them

    columns = [(new(layer.keys), new(layer.values)) for layer in layers]
    halfway.put_back()

    def append() -> None:
        for layer, pair in zip(layers, columns, strict=True):
            layer.update(*pair)

    return call_times(append, halfway.plan.seeds.device, 20).percentile(0.5) / 1e3


def _split(iterations: list[dict[str, float]], append: float) -> dict[str, float]:
    """What the clock read of the median iteration, with the appends counted where they belong."""
    one = sorted(iterations, key=lambda read: read["iteration"])[len(iterations) // 2]
    forward, verify, commit = (one[name] for name in PARTS)
    rest = one["iteration"] - forward - verify - commit
    return {"iteration": one["iteration"], "forward": forward - append, "verify": verify, "cache": commit + append, "rest": rest}


class _Spanned:
    """Iterations one operation after the other, under a clock."""

    def __init__(self, clock: Clock):
        self._advance, self._clock = Eager(), clock
        self.columns = self._advance.columns

    def __call__(self, *arguments: Any) -> WindowState:
        self._clock.clear()
        with watch_parts(self._clock), self._clock("iteration"):
            return self._advance(*arguments)


def timed(adapter: SlicedCausalLM, size: Size, preset: Preset, batch: int, iterations: int, *, guidance_scale: float, top_k: int) -> dict[str, Any]:
    """Milliseconds of an iteration, operation by operation and, on a GPU, as a graph; its parts; its peak memory in bytes."""
    device = adapter.device
    processing = LogitsProcessing.create(batch, guidance_scale=guidance_scale, top_k=top_k, device=device)
    with torch.inference_mode():
        halfway = Halfway.of(adapter, size, preset, batch, processing)
        with PeakMemory(device) as memory:
            figures: dict[str, Any] = {
                "columns": halfway.columns,
                "attention": halfway.cache.attention,
                "eager_milliseconds": _medians(halfway, Eager(), iterations),
            }
        figures |= {"peak_bytes": memory.bytes, "milliseconds": figures["eager_milliseconds"], "split": None}
        append = _appends(halfway)
        clock, few = Clock(device), max(3, iterations // 2)
        if device.type != "cuda":
            return figures | {"split": _split(_read(halfway, _Spanned(clock), clock, few), append)}
        return figures | _as_graph(halfway, clock, iterations, few, append)


def _read(halfway: Halfway, advance: Any, clock: Clock, times: int) -> list[dict[str, float]]:
    """What the clock read of each of ``times`` iterations."""
    found = []
    for _ in range(times):
        halfway.run(advance, 1, lambda: None)
        found.append(clock.read())
    return found


def _as_graph(halfway: Halfway, clock: Clock, iterations: int, few: int, append: float) -> dict[str, Any]:
    record = record_cuda_graph()

    def record_with_spans(work: Callable[[], None]) -> Callable[[], None]:
        def spanned() -> None:
            with watch_parts(clock), clock("iteration"):
                work()

        clock.clear()
        return record(spanned)

    graphed = Graphed(record_with_spans, halfway.cache.capacity)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        milliseconds = _medians(halfway, graphed, iterations)
    refused = [str(one.message) for one in said if "graphs: " in str(one.message)]
    if refused:
        return {"graph not run": refused[0]}
    split = _split(_read(halfway, graphed, clock, few), append)
    return {"graph_milliseconds": milliseconds, "milliseconds": milliseconds, "split": split}


def bytes_of_a_forward(adapter: SlicedCausalLM, size: Size) -> int:
    """Of the weights that a forward of the loop reads: every module that runs, once, and the image rows of the head; of an embedding a few rows."""
    ran: dict[int, int] = {}

    def seen(module: torch.nn.Module, *_: Any) -> None:
        if not isinstance(module, torch.nn.Embedding):
            ran.update((id(weight), weight.numel() * weight.element_size()) for weight in module.parameters(recurse=False))

    handles = [module.register_forward_hook(seen) for module in adapter.model.modules()]
    try:
        with torch.inference_mode():
            hidden = adapter.embed_ids(words(adapter, size, 1)[:1, :1].to(adapter.device))
            cache = adapter.new_cache(1, 8)
            adapter.forward(hidden, cache)
    finally:
        for handle in handles:
            handle.remove()
    head = adapter.model.get_output_embeddings()
    if type(adapter)._head is SlicedCausalLM._head and id(head.weight) not in ran:  # multiplied in part, without its module
        ran[id(head.weight)] = adapter.vocab_size * head.weight.shape[1] * head.weight.element_size()
    return sum(ran.values())
