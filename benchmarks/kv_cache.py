"""Cost of the KV cache around a forward, against Transformers' caches: ``make bench-kv``.

Shapes of a 7B model with multi-head attention: 32 layers, 32 heads of 128, a window of 64 inputs behind 2000 committed tokens. Every
workload goes through all layers, so that no layer's buffers are still in a processor cache when their turn comes again. ``plain copy``
copies the bytes that an append copies from one contiguous tensor to another, layer by layer. ``heads inside``: the new keys and values
lie in memory as ``[R, W, H, D]``, as projections make them, instead of ``[R, H, W, D]``; a copy that reorders them is slower too.
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
from transformers import DynamicCache, LlamaConfig, StaticCache

from conditions import conditions
from sjd2_kernels import kv_append, kv_compact, kv_rollback, paged_kv_append, paged_kv_gather, paged_kv_reserve, paged_kv_rollback, paged_kv_tables

HEADS, WIDTH, WINDOW, COMMITTED, ACCEPTED, PAGE = 32, 128, 64, 2000, 4, 16
CAPACITY = COMMITTED + WINDOW + 48


@dataclass
class Workload:
    """``run`` once is one iteration; it copies ``bytes`` (read once and written once), and ``restore`` undoes it, unmeasured."""

    run: Callable[[], None]
    bytes: int
    restore: Callable[[], object] = lambda: None


def _new(layers: int, rows: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values as attention hands them on: [R, W, H, D] transposed."""
    return [tuple(torch.randn(rows, WINDOW, HEADS, WIDTH).to(dtype).transpose(1, 2) for _ in range(2)) for _ in range(layers)]


def _buffers(layers: int, rows: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tuple(torch.ones(rows, HEADS, CAPACITY, WIDTH, dtype=dtype) for _ in range(2)) for _ in range(layers)]


def workloads(layers: int, rows: int, dtype: torch.dtype) -> dict[str, Callable[[], Workload]]:
    """Factories by name; each makes its own buffers, so that only one set exists at a time."""
    column = rows * HEADS * WIDTH * 2 * dtype.itemsize * layers
    lengths = torch.full((rows,), COMMITTED)

    def plain_copy(transposed: bool = False) -> Workload:
        new = _new(layers, rows, dtype)
        targets = [tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in pair) for pair in new]
        if not transposed:
            new = [tuple(tensor.contiguous() for tensor in pair) for pair in new]

        def run() -> None:
            for target, pair in zip(targets, new, strict=True):
                target[0].copy_(pair[0])
                target[1].copy_(pair[1])

        return Workload(run, WINDOW * column)

    def append(backend: str, contiguous: bool = False) -> Workload:
        buffers, new = _buffers(layers, rows, dtype), _new(layers, rows, dtype)
        if contiguous:
            new = [tuple(tensor.contiguous() for tensor in pair) for pair in new]

        def run() -> None:
            for buffer, pair in zip(buffers, new, strict=True):
                kv_append(*buffer, *pair, lengths, backend=backend)

        return Workload(run, WINDOW * column)

    def static_cache() -> Workload:
        """``index_copy_`` at one position for all rows."""
        config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=HEADS, hidden_size=HEADS * WIDTH)
        cache, new = StaticCache(config=config, max_cache_len=CAPACITY), _new(layers, rows, dtype)

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
        buffers, new = _buffers(layers, rows, dtype), _new(layers, rows, dtype)
        index = (lengths[:, None] + torch.arange(WINDOW))[:, None, :, None].expand(rows, HEADS, WINDOW, WIDTH).contiguous()

        def run() -> None:
            for buffer, pair in zip(buffers, new, strict=True):
                buffer[0].scatter_(2, index, pair[0])
                buffer[1].scatter_(2, index, pair[1])

        return Workload(run, WINDOW * column)

    def dynamic_cache() -> Workload:
        """One iteration: concatenate every layer, crop to what was accepted."""
        cache, new = DynamicCache(), _new(layers, rows, dtype)
        for index in range(layers):
            cache.update(*(torch.ones(rows, HEADS, COMMITTED, WIDTH, dtype=dtype) for _ in range(2)), index)

        def run() -> None:
            for index, pair in enumerate(new):
                cache.update(*pair, index)
            cache.crop(-(WINDOW - ACCEPTED))

        return Workload(run, (COMMITTED + WINDOW) * column, lambda: cache.crop(-ACCEPTED))

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
        table, free_list = paged_kv_tables(rows, -(-CAPACITY // PAGE), rows * -(-CAPACITY // PAGE))
        here, empty = lengths.clone(), torch.zeros_like(lengths)
        paged_kv_reserve(table, free_list, empty, COMMITTED, page_size=PAGE)
        pools = [tuple(torch.ones(len(free_list) - 1, HEADS, PAGE, WIDTH, dtype=dtype) for _ in range(2)) for _ in range(layers)]
        new, [dense] = _new(layers, rows, dtype), _buffers(1, rows, dtype)

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
        buffers = [tensor for pair in _buffers(layers, rows + 1, dtype) for tensor in pair]
        full, chosen = torch.full((rows + 1,), COMMITTED), torch.arange(1, rows + 1)
        here = full.clone()
        return Workload(lambda: kv_compact(buffers, here, chosen, backend=backend), COMMITTED * column, lambda: here.copy_(full))

    return {
        "plain copy": plain_copy,
        "plain copy, heads inside": lambda: plain_copy(transposed=True),
        "append, native": lambda: append("native", contiguous=True),
        "append, native, heads inside": lambda: append("native"),
        "append, torch": lambda: append("torch"),
        "append, StaticCache": static_cache,
        "append, scatter_": scatter,
        "rollback, native": lambda: rollback("native"),
        "compact, native": lambda: compact("native"),
        "iteration, DynamicCache": dynamic_cache,
        "iteration, native": lambda: iteration("native"),
        "iteration, paged": lambda: paged_iteration("native"),
    }


def measure(workload: Workload, copy: Workload, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each repeat, after one that is not counted, and of the plain copy right after it: on a shared machine only neighbours compare."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for times, timed in zip(seconds, (workload, copy), strict=True):
            started = time.perf_counter()
            timed.run()
            if number:
                times.append(time.perf_counter() - started)
        workload.restore()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: PyTorch's")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, copy = [], workloads(options.layers, options.rows, getattr(torch, options.dtype))["plain copy"]()
    for name, make in workloads(options.layers, options.rows, getattr(torch, options.dtype)).items():
        workload = make()
        seconds, beside = measure(workload, copy, 3 if "scatter_" in name else options.repeats)
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
    times = {row["name"]: row["p50_us"] for row in rows}
    ratio = times["iteration, DynamicCache"] / times["iteration, native"]
    print(f"an iteration's cache work is {ratio:.1f} times cheaper than DynamicCache's")
    if options.output:
        shapes = {"layers": options.layers, "rows": options.rows, "heads": HEADS, "width": WIDTH, "window": WINDOW, "committed": COMMITTED}
        shapes |= {"accepted": ACCEPTED, "page_size": PAGE, "dtype": options.dtype, "repeats": options.repeats}
        figures = {"conditions": conditions("cpu"), "shapes": shapes, "workloads": rows, "times_cheaper_than_dynamic_cache": ratio}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
