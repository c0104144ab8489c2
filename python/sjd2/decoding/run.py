"""From rows to their tokens: the loop's iterations, and between them what only the host can do.

The host looks at the state now and then (after every iteration on a CPU, where looking costs nothing). It sees which rows are finished and lets
waiting rows take their places, or the batch shrink; and how much of the cache the next iterations will read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sjd2_kernels import LogitsProcessing

from ..attention import choose_attention
from ..cache import PagedCache, RaggedCache, resolve_cache
from ..denoising.window import Denoiser
from ..recording import Recorder, record_cuda_graph
from .admission import admit
from .compaction import compact as compact_rows
from .graphs import Eager, Graphed, columns_at_once
from .kept import COLUMNS, Kept, KeptRun, kind_of_run
from .layout import TokenLayout
from .ledger import Ledger
from .memory import Need, check_memory
from .model import DecodableModel, Prompt
from .presets import Preset
from .rules import Rules
from .state import Plan, WindowState, begin
from .statistics import Progress, RowReport, Stopwatch

__all__ = ["DecodeResult", "decode"]


@dataclass(frozen=True)
class DecodeResult:
    """``tokens`` int64 ``[B, N]`` in slice ids (0 past a row's end), a report per row, and who computed the windows' attention."""

    tokens: torch.Tensor
    rows: list[RowReport]
    attention: str = "model"


@dataclass(frozen=True)
class _Sight:
    """What the host saw of the rows of the state."""

    remaining: list[int]
    committed: list[int]
    forwards: list[int]
    accepted: list[int]
    longest: int  # valid columns of the row that has most


def _look(state: WindowState, cache: RaggedCache, ledger: Ledger, iteration: int) -> _Sight:
    """Wait for the device, and read what there is to decide on.

    Raises:
        FloatingPointError: logits that nothing can be drawn from.
        RuntimeError: a row outgrew the cache.
    """
    rows = len(state.remaining)
    no_room, longest = cache.overflow.view(-1, rows).any(0), cache.lengths.view(-1, rows).amax(0)
    seen = torch.stack([state.remaining, state.committed, state.iteration, state.accepted, longest, no_room.long(), state.invalid.long()]).tolist()
    remaining, committed, forwards, accepted, columns, full, invalid = seen
    if any(full):
        raise RuntimeError(f"cache: expected room for every row's window, got none for row {ledger.rows[full.index(1)]} by iteration {iteration}")
    if any(invalid):
        raise FloatingPointError(
            f"logits: expected finite values and at least one id that may be drawn, got NaN, +inf or a fully masked "
            f"distribution in row {ledger.rows[invalid.index(1)]} within iteration {iteration}"
        )
    return _Sight(remaining, committed, forwards, accepted, max(columns))


class _Clock:
    """Seconds of rows, from when they began to when they were seen to be finished."""

    def __init__(self, device: torch.device, *, whole_forward: bool):
        self.stopwatch, self._whole_forward = Stopwatch(device), whole_forward
        self._began: dict[int, tuple[float, float]] = {}

    def now(self) -> tuple[float, float]:
        """Of the wall, and inside the model's forward."""
        return time.perf_counter(), self.stopwatch.seconds()

    def begin(self, rows: list[int]) -> None:
        """Rows begin."""
        self._began |= dict.fromkeys(rows, self.now())

    def until(self, end: tuple[float, float], row: int) -> tuple[float, float | None]:
        """Seconds from when a row began, whole and in the model's forward, if anyone knows those."""
        (now, inside), (began, inside_before) = end, self._began.pop(row)
        return now - began, inside - inside_before if self._whole_forward else None


def _run(
    whole: Plan,
    prompt: Prompt,
    places: int,
    callback: Callable[[Progress], None] | None,
    finished: Callable[[int, torch.Tensor, RowReport], None] | None,
    poll_every: int,
    recorder: Recorder | None,
    attention: str,
    kept: KeptRun | None,
) -> tuple[DecodeResult, KeptRun | None]:
    """Iterate until every row is finished; with a recorder also what the next run can take over, as this one did with ``kept``."""
    batch, count = whole.layout.forced.shape
    window, extra = whole.preset.window, 0 if whole.denoiser is None else len(whole.denoiser.timesteps)
    waiting = deque(range(places, batch))
    ledger = Ledger(batch, range(places), whole.seeds.device)
    clock = _Clock(whole.seeds.device, whole_forward=recorder is None)
    clock.begin(ledger.rows)
    longest = prompt.embeds.shape[1] - 1
    advance: Eager | Graphed
    if kept is not None:
        advance, state, cache = kept.advance, kept.state, kept.cache
        plan, state = admit(whole, state, cache, ledger, prompt, ledger.rows, ledger.rows, clock.stopwatch)
    else:
        plan = whole if not waiting else whole.select(ledger.index)
        first = prompt if not waiting else prompt.select(plan.model_rows(ledger.index, batch))
        columns = longest + count + window + extra
        on_gpu = recorder is not None or whole.seeds.device.type != "cpu"
        capacity = -(-columns // COLUMNS) * COLUMNS if on_gpu else columns
        state, cache = begin(plan, first, clock.stopwatch, capacity=capacity)
        cache.attention = attention
        # On a GPU the columns are those of graphs, too: sums over another number of them may be rounded differently.
        advance = Eager(columns_at_once(cache.capacity)) if on_gpu else Eager()
        if recorder is not None:
            advance = Graphed(recorder, cache.capacity)
    reports: dict[int, RowReport] = {}
    iteration, unseen, enough = 0, 0, count  # `enough` iterations finish every row
    while len(reports) < batch:
        iteration, unseen = iteration + 1, unseen + 1
        # No row can have more columns than the host saw, and a window more for every iteration since.
        cache.extent = -(-(longest + unseen * window + extra) // advance.columns) * advance.columns
        state = advance(plan, state, cache, clock.stopwatch)
        if callback is not None:
            rows = ledger.outcome(state)
            callback(Progress(iteration, rows.committed, whole.layout.lengths, rows.tokens[:, :count], rows.drafts, rows.levels))
        if unseen < min(poll_every, enough):
            continue
        sight = _look(state, cache, ledger, iteration)
        over, seen = [place for place, left in enumerate(sight.remaining) if left == 0], clock.now()
        for place in over:
            if (row := ledger.rows[place]) not in reports:
                reports[row] = RowReport(sight.committed[place], sight.forwards[place], sight.accepted[place], *clock.until(seen, row))
                if finished is not None:
                    finished(row, state.tokens[place, : sight.committed[place]].clone(), reports[row])
        longest, remaining = sight.longest, sight.remaining
        if waiting and over:
            taken = over[: len(waiting)]
            numbers = [waiting.popleft() for _ in taken]
            clock.begin(numbers)
            plan, state = admit(whole, state, cache, ledger, prompt, taken, numbers, clock.stopwatch)
            longest, enough = max(longest, prompt.embeds.shape[1] - 1), count
        elif plan.compact and len(reports) < batch:
            plan, state = compact_rows(whole, plan, state, cache, ledger, remaining)
        unseen, enough = 0, count if waiting else max(*remaining, 1)
    result = DecodeResult(ledger.outcome(state).tokens[:, :count], [reports[row] for row in range(batch)], attention)
    return result, KeptRun(advance, state, cache) if isinstance(advance, Graphed) else None


def decode(
    model: DecodableModel,
    prompt: Prompt,
    layout: TokenLayout,
    processing: LogitsProcessing,
    preset: Preset,
    seeds: torch.Tensor,
    *,
    batch_size: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    finished: Callable[[int, torch.Tensor, RowReport], None] | None = None,
    poll_every: int | None = None,
    cache: str = "ragged",
    compact: bool = True,
    rules: Rules | None = None,
    graphs: bool | Recorder | None = None,
    attention: str = "auto",
    kept: Kept | None = None,
) -> DecodeResult:
    """Decode the image tokens of B rows.

    Args:
        model: what the adapter made of a Hugging Face model.
        prompt: B model rows, or 2B with guidance.
        layout: of the B token sequences.
        processing: sampling parameters of the B rows.
        preset: the method.
        seeds: int64 ``[B]``: with the method's settings and the row's own prompt a seed determines the row's tokens.
        batch_size: rows decoded together; the others wait, and take the place of the first that is finished. By default all are.
        callback: called after every iteration with the :class:`Progress`.
        finished: called for every row as soon as the host sees its end, with its number, its tokens (int64 ``[n]``) and its report.
        poll_every: iterations between two looks of the host (default 1 on a CPU, 8 elsewhere).
        cache: ``ragged`` or ``paged``; see ``sjd2.cache``. The tokens are the same.
        compact: let finished rows leave the batch where the host looks. The tokens are the same, as far as a model rounds alike for fewer rows.
        rules: what else decides what is drawn and where rows end.
        graphs: replay iterations as CUDA graphs (default: on a GPU, unless there are ``rules``, whose Python no graph could hold). The tokens are the
            same; reports have no ``forward_seconds`` then. A ``Recorder`` of another kind takes its place.
        attention: of the windows: ``model``, ``triton``, ``flex`` or ``flash`` (see ``sjd2.attention``). ``auto``: on a GPU the fastest, measured
            once; elsewhere ``model``. They differ in rounding.
        kept: where graphs are kept, with the cache that they read, for the next run of the same kind. The tokens are the same.

    Raises:
        ValueError: shapes that do not fit each other, guidance without unconditional rows, ``poll_every`` or ``batch_size`` below 1, ``rules`` that
            know rows by their numbers with rows that wait, ``graphs`` without a GPU or with ``rules``, an unknown cache, an attention that cannot be
            used here, more positions than the model has.
        FloatingPointError: a row's logits held NaN or +inf, or no id that may be drawn.
        MemoryError: the batch will not fit.
        RuntimeError: the cache had no room for a row's window (its adapter made it too small).
    """
    batch, count = layout.forced.shape
    rows, width, _ = prompt.embeds.shape
    if rows not in (batch, 2 * batch):
        raise ValueError(f"prompt: expected {batch} rows, or {2 * batch} with guidance, got {rows}")
    if seeds.shape != (batch,):
        raise ValueError(f"seeds: expected shape ({batch},), got {tuple(seeds.shape)}")
    if int(layout.lengths.max()) > count:
        raise ValueError(f"layout.lengths: expected at most {count} (the width of layout.forced), got {int(layout.lengths.max())}")
    if rows == batch and processing.uses_guidance:
        raise ValueError(f"prompt: guidance needs {2 * batch} rows, conditional and unconditional, got {rows}")
    if poll_every is None:
        poll_every = 1 if seeds.device.type == "cpu" else 8
    elif poll_every < 1:
        raise ValueError(f"poll_every: expected a whole number >= 1, got {poll_every}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number >= 1, got {batch_size}")
    places = min(batch_size or batch, batch)
    numbered = rules is not None and rules.numbered
    if numbered and places < batch:
        raise ValueError(f"batch_size: rules that know rows by their numbers need all {batch} rows together, got {batch_size}")
    if graphs is None:
        graphs = seeds.device.type == "cuda" and rules is None
    if graphs and rules is not None:
        raise ValueError("graphs: expected False with rules, which run in Python")
    if graphs is True and seeds.device.type != "cuda":
        raise ValueError(f"graphs: expected a GPU, got seeds on {seeds.device}")
    limit = model.position_limit
    if limit is not None and width - 1 + count > limit:
        raise ValueError(f"prompt: prompt and image together need {width - 1 + count} positions, the model has {limit}")
    if limit is not None and preset.window > limit:
        raise ValueError(f"window: expected at most the model's {limit} positions, got {preset.window}")
    extra = 0 if preset.denoising is None else preset.denoising.timestep_tokens(preset.window)
    structural = bool((layout.forced >= model.vocab_size).any())
    plan = Plan(
        model,
        layout,
        processing,
        preset,
        seeds,
        guided=rows == 2 * batch,
        structural=structural,
        cache=resolve_cache(cache),
        compact=compact and not numbered,
        rules=rules,
    )
    with torch.inference_mode():
        if preset.denoising is not None:
            plan = replace(plan, denoiser=Denoiser(preset.denoising, preset.window, model, seeds.device, structural=structural))
        recorder = (record_cuda_graph() if graphs is True else graphs) or None
        attention = choose_attention(
            attention,
            model.attention_shape,
            seeds.device,
            rows=places * rows // batch,
            inputs=preset.window + extra,
            columns=width - 1 + count + preset.window + extra,
            timesteps=extra,
            paged=plan.cache is PagedCache,
            record=recorder,
        )
        kind = None if kept is None or recorder is None else kind_of_run(plan, attention)
        previous = None if kept is None or recorder is None else kept.take(kind)
        if previous is not None and not previous.fits(places * rows // batch, width - 1 + count + preset.window + extra):
            previous = None
        if previous is None:
            check_memory(Need.of_run(model, preset, guided=rows == 2 * batch, prompt=width, count=count), places, seeds.device)
        result, leaves = _run(plan, prompt, places, callback, finished, poll_every, recorder, attention, previous)
        if kept is not None and leaves is not None:
            kept.put(kind, leaves)
    # A copy made out here is an ordinary tensor that the caller may write to.
    return replace(result, tokens=result.tokens.clone())
