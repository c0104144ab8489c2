"""Cost of the KV cache around a forward, against Transformers' caches: ``make bench-kv``.

Shapes of a 7B model with multi-head attention: 32 layers, 32 heads of 128, a window of 64 inputs behind 2000 committed tokens. Every
workload goes through all layers, so that no layer's buffers are still in a processor cache when their turn comes again. New keys and
values lie in memory as projections make them, ``[R, W, H, D]``, and so do the decoder's caches. ``plain copy`` copies the bytes that an
append copies from one contiguous tensor to another, layer by layer. ``heads outside``: new columns and cache as ``[R, H, ·, D]``;
``reordered``: from the one into the other, which Transformers' caches do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import gpu_milliseconds, recorded
from transformers import DynamicCache, LlamaConfig, StaticCache

from conditions import conditions
from sjd2.cache.ragged import new_buffer
from sjd2.files import write_atomically
from sjd2_kernels import kv_append, kv_compact, kv_rollback, paged_kv_append, paged_kv_gather, paged_kv_reserve, paged_kv_rollback, paged_kv_tables

HEADS, WIDTH, WINDOW, COMMITTED, ACCEPTED, PAGE = 32, 128, 64, 2000, 4, 16
CAPACITY = COMMITTED + WINDOW + 48

#: Written before every call that events time: a GPU with nothing to do would time how long the host takes to launch it. More than a cache holds.
BUSY_BYTES = 2**29


@dataclass
class Workload:
    """``run`` once is one iteration; it copies ``bytes`` (read once and written once), and ``restore`` undoes it, unmeasured.

    ``recordable``: it does the same every time, so that a CUDA graph can hold it.
    """

    run: Callable[[], None]
    bytes: int
    restore: Callable[[], object] = lambda: None
    recordable: bool = True


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def _new(layers: int, rows: int, dtype: torch.dtype, device: str) -> Pairs:
    """Keys and values as attention hands them on: [R, W, H, D] transposed."""
    return [tuple(torch.randn(rows, WINDOW, HEADS, WIDTH, device=device).to(dtype).transpose(1, 2) for _ in range(2)) for _ in range(layers)]


def _buffers(rows: int, columns: int, new: Pairs) -> Pairs:
    """A cache in the layout of ``new``, every byte of it touched."""
    return [tuple(new_buffer(rows, columns, states).fill_(1) for states in pair) for pair in new]


def _contiguous(pairs: Pairs) -> Pairs:
    return [tuple(tensor.contiguous() for tensor in pair) for pair in pairs]


def workloads(layers: int, rows: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Callable[[], Workload]]:
    """Factories by name; each makes its own buffers, so that only one set exists at a time."""
    column = rows * HEADS * WIDTH * 2 * dtype.itemsize * layers
    lengths = torch.full((rows,), COMMITTED, device=device)

    def states() -> Pairs:
        return _new(layers, rows, dtype, device)

    def plain_copy() -> Workload:
        new = [tuple(tensor.transpose(1, 2) for tensor in pair) for pair in states()]
        targets = [tuple(torch.zeros_like(tensor) for tensor in pair) for pair in new]

        def run() -> None:
            for target, pair in zip(targets, new, strict=True):
                target[0].copy_(pair[0])
                target[1].copy_(pair[1])

        return Workload(run, WINDOW * column)

    def append(backend: str, *, new_outside: bool = False, cache_outside: bool = False) -> Workload:
        new = states()
        buffers = _buffers(rows, CAPACITY, _contiguous(new) if cache_outside else new)
        if new_outside:
            new = _contiguous(new)

        def run() -> None:
            for buffer, pair in zip(buffers, new, strict=True):
                kv_append(*buffer, *pair, lengths, backend=backend)

        return Workload(run, WINDOW * column)

    def static_cache() -> Workload:
        """``index_copy_`` at one position for all rows."""
        config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=HEADS, hidden_size=HEADS * WIDTH)
        cache, new = StaticCache(config=config, max_cache_len=CAPACITY), states()

        def restore() -> None:
            for layer in cache.layers:
                if layer.is_initialized:
                    layer.cumulative_length.fill_(COMMITTED)

        def run() -> None:
            for index, pair in enumerate(new):
                cache.update(*pair, index)

        run()
        restore()
        return Workload(run, WINDOW * column, restore)

    def scatter() -> Workload:
        """``scatter_`` with an index as large as what it writes."""
        new = states()
        buffers = _buffers(rows, CAPACITY, new)
        index = (lengths[:, None] + torch.arange(WINDOW, device=device))[:, None, :, None].expand(rows, HEADS, WINDOW, WIDTH).contiguous()

        def run() -> None:
            for buffer, pair in zip(buffers, new, strict=True):
                buffer[0].scatter_(2, index, pair[0])
                buffer[1].scatter_(2, index, pair[1])

        return Workload(run, WINDOW * column)

    def dynamic_cache() -> Workload:
        """One iteration: concatenate every layer, crop to what was accepted."""
        cache, new = DynamicCache(), states()
        for index in range(layers):
            cache.update(*(torch.ones(rows, HEADS, COMMITTED, WIDTH, dtype=dtype, device=device) for _ in range(2)), index)

        def run() -> None:
            for index, pair in enumerate(new):
                cache.update(*pair, index)
            cache.crop(-(WINDOW - ACCEPTED))

        return Workload(run, (COMMITTED + WINDOW) * column, lambda: cache.crop(-ACCEPTED), recordable=False)

    def iteration(backend: str) -> Workload:
        """The same iteration: append to every layer, roll back to what was accepted."""
        appends, here = append(backend), lengths.clone()
        accepted = here + ACCEPTED

        def run() -> None:
            appends.run()
            kv_rollback(here, accepted, window=WINDOW, backend=backend)

        return Workload(run, WINDOW * column, lambda: here.copy_(lengths))

    def paged_iteration(backend: str) -> Workload:
        """The same on pages, gathered for an attention that cannot read them."""
        table, free_list = paged_kv_tables(rows, -(-CAPACITY // PAGE), rows * -(-CAPACITY // PAGE), device=device)
        here, empty = lengths.clone(), torch.zeros_like(lengths)
        paged_kv_reserve(table, free_list, empty, COMMITTED, page_size=PAGE)
        new = states()
        pools, [dense] = _buffers(len(free_list) - 1, PAGE, new), _buffers(rows, CAPACITY, new[:1])

        def run() -> None:
            paged_kv_reserve(table, free_list, here, WINDOW, page_size=PAGE, backend=backend)
            for pool, pair in zip(pools, new, strict=True):
                paged_kv_append(*pool, *pair, table, here, backend=backend)
                paged_kv_gather(*dense, *pool, table, here + WINDOW, backend=backend)
            paged_kv_rollback(table, free_list, here, here + ACCEPTED, page_size=PAGE, window=WINDOW, backend=backend)

        return Workload(run, (COMMITTED + 2 * WINDOW) * column, lambda: here.copy_(lengths))

    def rollback(backend: str) -> Workload:
        here, accepted = lengths.clone(), lengths + ACCEPTED
        return Workload(lambda: kv_rollback(here, accepted, window=WINDOW, backend=backend), 0, lambda: here.copy_(lengths))

    def compact(backend: str) -> Workload:
        """The last row takes the place of the first: every layer in one call."""
        buffers = [tensor for pair in _buffers(rows + 1, CAPACITY, states()) for tensor in pair]
        full, chosen = torch.full((rows + 1,), COMMITTED, device=device), torch.arange(1, rows + 1, device=device)
        here = full.clone()
        return Workload(lambda: kv_compact(buffers, here, chosen, backend=backend), COMMITTED * column, lambda: here.copy_(full))

    return {
        "plain copy": plain_copy,
        "append, native": lambda: append("native"),
        "append, native, heads outside": lambda: append("native", new_outside=True, cache_outside=True),
        "append, native, reordered": lambda: append("native", cache_outside=True),
        "append, torch": lambda: append("torch"),
        "append, StaticCache": static_cache,
        "append, scatter_": scatter,
        "rollback, native": lambda: rollback("native"),
        "compact, native": lambda: compact("native"),
        "iteration, DynamicCache": dynamic_cache,
        "iteration, native": lambda: iteration("native"),
        "iteration, paged": lambda: paged_iteration("native"),
    }


def _timed(workload: Workload, device: str) -> Callable[[], float]:
    """Runs a workload and says how many seconds it took: on a GPU as a graph, as the decoder runs it, or else with what Python takes to launch it."""
    if device == "cpu":

        def by_the_clock() -> float:
            started = time.perf_counter()
            workload.run()
            return time.perf_counter() - started

        return by_the_clock
    workload.run()
    workload.restore()
    replay = recorded(workload.run) if workload.recordable else None
    busy = torch.empty(BUSY_BYTES, dtype=torch.uint8, device=device)
    return lambda: gpu_milliseconds(replay or workload.run, 1, before=busy.zero_)[0] / 1e3


def measure(workload: Workload, copy: Workload, repeats: int, device: str) -> tuple[list[float], list[float]]:
    """Seconds of each repeat, after one that is not counted, and of the plain copy right after it: on a shared machine only neighbours compare."""
    seconds: tuple[list[float], list[float]] = ([], [])
    runs = _timed(workload, device), _timed(copy, device)
    for number in range(repeats + 1):
        for times, run in zip(seconds, runs, strict=True):
            taken = run()
            if number:
                times.append(taken)
        workload.restore()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: PyTorch's")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = {"layers": options.layers, "rows": options.rows, "heads": HEADS, "width": WIDTH, "window": WINDOW, "committed": COMMITTED}
    shapes |= {"accepted": ACCEPTED, "page_size": PAGE, "dtype": options.dtype, "repeats": options.repeats}
    figures = {"conditions": conditions(options.device), "shapes": shapes}
    contenders = workloads(options.layers, options.rows, getattr(torch, options.dtype), options.device)
    rows, copy = [], contenders["plain copy"]()
    for name, make in contenders.items():
        workload = make()
        seconds, beside = measure(workload, copy, 3 if "scatter_" in name else options.repeats, options.device)
        deciles = statistics.quantiles(seconds, n=10)
        p20, p50, p80 = deciles[1], deciles[4], deciles[7]
        speed = workload.bytes / p50
        row = {"name": name, "bytes": workload.bytes, "p20_us": p20 * 1e6, "p50_us": p50 * 1e6, "p80_us": p80 * 1e6, "GB_per_s": speed / 1e9}
        shares = [workload.bytes / mine / (copy.bytes / plain) for mine, plain in zip(seconds, beside, strict=True)]
        row["percent_of_plain_copy"] = 100 * statistics.median(shares)
        rows.append(row)
        print(
            f"{name:34} {row['p50_us']:10.1f} µs ({row['p20_us']:.1f}–{row['p80_us']:.1f})  {workload.bytes / 1e6:8.1f} MB  "
            f"{row['GB_per_s']:6.2f} GB/s  {row['percent_of_plain_copy']:5.0f} % of a plain copy",
            flush=True,
        )
        del workload
        if options.output:  # after every row: what is done is kept if the next one is cut off
            text = json.dumps(figures | {"workloads": rows, "times_cheaper_than_dynamic_cache": _cheaper(rows)}, indent=1)
            write_atomically(options.output, lambda path, text=text: path.write_text(text + "\n"))
    print(f"an iteration's cache work is {_cheaper(rows):.1f} times cheaper than DynamicCache's")


def _cheaper(rows: list[dict]) -> float | None:
    """How many times less an iteration's work takes than with ``DynamicCache``, once both were run."""
    times = {row["name"]: row["p50_us"] for row in rows}
    both = times.get("iteration, DynamicCache"), times.get("iteration, native")
    return both[0] / both[1] if all(both) else None


if __name__ == "__main__":
    main()
