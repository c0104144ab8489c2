"""Random calls of the cache ops, for comparing two back-ends: the same arguments twice, and every tensor that a call may write."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

DTYPES = (torch.uint8, torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.complex64)


@dataclass
class Call:
    """Arguments by name; ``clone`` keeps the strides, so that every back-end sees the same layout."""

    arguments: dict[str, object] = field(default_factory=dict)

    def clone(self) -> dict[str, object]:
        def copy(value: object) -> object:
            if isinstance(value, torch.Tensor):
                return _same_layout(value)
            return [copy(item) for item in value] if isinstance(value, list) else value

        return {name: copy(value) for name, value in self.arguments.items()}


def _same_layout(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Comparable bytes of any dtype, NaN included."""
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def same(first: object, second: object) -> bool:
    """Equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(bits(first), bits(second))
    return all(same(one, other) for one, other in zip(first, second, strict=True)) if isinstance(first, list) else first == second


def random_bits(draw, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of any contents in one of the layouts that models and slices give."""
    seed = draw(st.integers(0, 2**31 - 1))
    layout = draw(st.sampled_from(["plain", "heads inside", "sliced", "every other column", "strided width", "offset"]))
    generator = torch.Generator().manual_seed(seed)

    def fill(*size: int) -> torch.Tensor:
        if dtype is torch.bool:
            return torch.randint(2, size, generator=generator).bool()
        raw = torch.randint(256, (math.prod(size) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        return raw.view(dtype).view(size)

    rows, heads, columns, width = shape
    if layout == "heads inside":
        return fill(rows, columns, heads, width).transpose(1, 2)
    if layout == "sliced":
        return fill(rows, heads, columns, width + 3)[..., 1 : 1 + width]
    if layout == "every other column":
        return fill(rows, heads, 2 * columns, width)[:, :, ::2]
    if layout == "strided width":
        return fill(rows, heads, width, columns).transpose(2, 3)
    if layout == "offset":
        return fill(rows + 1, heads, columns, width)[1:]
    return fill(rows, heads, columns, width)


def index(values: list, *, strided: bool) -> torch.Tensor:
    """int64, with gaps between the elements if asked for."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return torch.stack([tensor, torch.full_like(tensor, 77)], dim=-1)[..., 0] if strided else tensor


SIZES = {"rows": st.integers(1, 4), "heads": st.integers(1, 3), "columns": st.integers(1, 9), "width": st.integers(1, 9)}


@st.composite
def dense(draw, layers: int = 1) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Keys and values of some layers, lengths that may be negative, and the capacity."""
    rows, heads, columns = (draw(SIZES[name]) for name in ("rows", "heads", "columns"))
    caches = [
        random_bits(draw, (rows, heads, columns, draw(SIZES["width"])), dtype)
        for dtype in draw(st.lists(st.sampled_from(DTYPES), min_size=layers, max_size=layers))
        for _ in range(2)
    ]
    lengths = draw(st.lists(st.integers(-2, columns), min_size=rows, max_size=rows))
    return caches, index(lengths, strided=draw(st.booleans())), columns


@st.composite
def appends(draw) -> Call:
    caches, lengths, columns = draw(dense())
    new = draw(st.integers(0, columns))
    lengths.clamp_(max=columns - new)
    keys, values = (random_bits(draw, (*cache.shape[:2], new, cache.shape[3]), cache.dtype) for cache in caches)
    return Call({"key_cache": caches[0], "value_cache": caches[1], "keys": keys, "values": values, "lengths": lengths})


@st.composite
def rollbacks(draw) -> Call:
    caches, lengths, columns = draw(dense(layers=2))
    window = draw(st.integers(0, 5))
    new = [draw(st.integers(-1, min(max(length, 0) + window, columns))) for length in lengths.tolist()]
    scrubbed = caches if draw(st.booleans()) else []
    return Call({"lengths": lengths, "new_lengths": index(new, strided=draw(st.booleans())), "window": window, "caches": scrubbed})


@st.composite
def compactions(draw) -> Call:
    caches, lengths, _ = draw(dense(layers=2))
    rows = len(lengths)
    chosen = draw(st.lists(st.integers(-1, rows - 1), max_size=rows))
    return Call({"caches": caches, "lengths": lengths, "rows": index(chosen, strided=draw(st.booleans()))})


@st.composite
def column_compactions(draw) -> Call:
    caches, lengths, columns = draw(dense(layers=2))
    count = draw(st.integers(0, columns))
    lengths.clamp_(max=columns - count)
    chosen = [
        [draw(st.integers(-1, columns - max(length, 0) - 1)) if columns > max(length, 0) else -1 for _ in range(count)] for length in lengths.tolist()
    ]
    return Call({"caches": caches, "lengths": lengths, "columns": index(chosen, strided=draw(st.booleans())).reshape(len(lengths), count)})


@dataclass
class Paged:
    """Pools of some layers, a table in which rows hold the pages that their lengths need, and what is left."""

    pools: list[torch.Tensor]
    block_table: torch.Tensor
    free_list: torch.Tensor
    lengths: torch.Tensor
    page_size: int


@st.composite
def paged(draw, layers: int = 1, spare: int = 0) -> Paged:
    """``spare`` columns of every row have pages as well."""
    rows, heads, page_size, max_pages = draw(SIZES["rows"]), draw(SIZES["heads"]), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    capacity = page_size * max_pages
    lengths = draw(st.lists(st.integers(-2, max(capacity - spare, -1)), min_size=rows, max_size=rows))
    needed = [-(-(length + spare) // page_size) if length >= 0 else 0 for length in lengths]
    pages = sum(needed) + draw(st.integers(0, 6))
    order = draw(st.permutations(range(pages)))
    table, used = [], 0
    for count in needed:
        table.append([*order[used : used + count], *[-1] * (max_pages - count)])
        used += count
    free = [pages - used, *order[used:], *[-5] * used]
    pools = [
        random_bits(draw, (pages, heads, page_size, draw(SIZES["width"])), dtype)
        for dtype in draw(st.lists(st.sampled_from(DTYPES), min_size=layers, max_size=layers))
        for _ in range(2)
    ]
    strided = draw(st.booleans())
    return Paged(pools, index(table, strided=strided), index(free, strided=strided), index(lengths, strided=strided), page_size)


@st.composite
def paged_appends(draw) -> Call:
    new = draw(st.integers(0, 4))
    case = draw(paged(spare=new))
    rows = len(case.lengths)
    keys, values = (random_bits(draw, (rows, pool.shape[1], new, pool.shape[3]), pool.dtype) for pool in case.pools)
    tables = {"block_table": case.block_table, "lengths": case.lengths}
    return Call({"key_pages": case.pools[0], "value_pages": case.pools[1], "keys": keys, "values": values, **tables})


@st.composite
def gathers(draw) -> Call:
    case = draw(paged())
    capacity = max(int(case.lengths.max()), 0) + draw(st.integers(0, 3))
    keys, values = (random_bits(draw, (len(case.lengths), pool.shape[1], capacity, pool.shape[3]), pool.dtype) for pool in case.pools)
    tables = {"block_table": case.block_table, "lengths": case.lengths}
    return Call({"keys": keys, "values": values, "key_pages": case.pools[0], "value_pages": case.pools[1], **tables})


@st.composite
def paged_rollbacks(draw) -> Call:
    window = draw(st.integers(0, 4))
    case = draw(paged(layers=2, spare=window))
    capacity = case.block_table.shape[1] * case.page_size
    new = [draw(st.integers(-1, min(max(length, 0) + window, capacity))) for length in case.lengths.tolist()]
    scrubbed = case.pools if draw(st.booleans()) else []
    tables = {"block_table": case.block_table, "free_list": case.free_list, "lengths": case.lengths}
    return Call({**tables, "new_lengths": index(new, strided=False), "page_size": case.page_size, "window": window, "pools": scrubbed})


@st.composite
def reservations(draw) -> Call:
    case = draw(paged())
    capacity = case.block_table.shape[1] * case.page_size
    new = draw(st.integers(0, 5))
    case.lengths.clamp_(max=capacity - new)
    free, needed = int(case.free_list[0]), 0
    for row, length in enumerate(case.lengths.tolist()):
        needed += max(-(-(length + new) // case.page_size) - int((case.block_table[row] >= 0).sum()), 0) if length >= 0 else 0
    if needed > free:
        new = 0
    tables = {"block_table": case.block_table, "free_list": case.free_list, "lengths": case.lengths}
    return Call({**tables, "new": new, "page_size": case.page_size})


@st.composite
def table_compactions(draw) -> Call:
    case = draw(paged())
    rows = len(case.lengths)
    chosen = draw(st.permutations(range(rows)))[: draw(st.integers(0, rows))]
    chosen = [-1 if row == slot and draw(st.booleans()) else row for slot, row in enumerate(chosen)]
    tables = {"block_table": case.block_table, "free_list": case.free_list, "lengths": case.lengths}
    return Call({**tables, "rows": index(chosen, strided=draw(st.booleans()))})


@st.composite
def paged_column_compactions(draw) -> Call:
    count = draw(st.integers(0, 4))
    case = draw(paged(layers=2, spare=count))
    chosen = [[draw(st.integers(-1, count - 1)) for _ in range(count)] for _ in case.lengths.tolist()]
    columns = index(chosen, strided=draw(st.booleans())).reshape(len(case.lengths), count)
    return Call({"pools": case.pools, "block_table": case.block_table, "lengths": case.lengths, "columns": columns})
