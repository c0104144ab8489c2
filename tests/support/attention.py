"""Windows over ragged caches, and attention over them written the slow and obvious way."""

from __future__ import annotations

import torch


def attention_case(rows, heads, groups, inputs, columns, width, *, timesteps=0, dtype=torch.float32, device="cpu", seed=0):
    """(query, keys, values, lengths, levels), laid out as projections and the cache lay them out; what lies behind a row's inputs is infinite."""
    generator = torch.Generator().manual_seed(seed)

    def states(count, length):
        return torch.randn(rows, length, count, width, generator=generator).to(dtype).transpose(1, 2)

    query, keys, values = states(heads, inputs), states(groups, columns), states(groups, columns)
    lengths = torch.randint(0, columns - inputs + 1, (rows,), generator=generator)
    levels = torch.randint(0, timesteps + 1, (rows, inputs - timesteps), generator=generator) if timesteps else None
    behind = torch.arange(columns) >= lengths[:, None] + inputs
    keys.masked_fill_(behind[:, None, :, None], torch.inf)
    values.masked_fill_(behind[:, None, :, None], torch.nan)
    moved = [tensor.to(device) for tensor in (query, keys, values, lengths)]
    return *moved, None if levels is None else levels.to(device)


def paged(keys, values, page_size, *, seed=0):
    """Keys and values ``[R, G, S, D]`` in shuffled pages, and the block table; pages that nobody has hold NaN."""
    rows, groups, columns, width = keys.shape
    pages = -(-columns // page_size)
    order = torch.randperm(rows * pages + 3, generator=torch.Generator().manual_seed(seed))[: rows * pages].view(rows, pages).to(keys.device)
    pools = []
    for tensor in (keys, values):
        pool = tensor.new_full((rows * pages + 3, page_size, groups, width), torch.nan)
        padded = torch.nn.functional.pad(tensor, (0, 0, 0, pages * page_size - columns), value=torch.nan)
        pool[order] = padded.unflatten(2, (pages, page_size)).permute(0, 2, 3, 1, 4)
        pools.append(pool.transpose(1, 2))
    return *pools, order


def obvious_attention(query, keys, values, lengths, levels, scale) -> torch.Tensor:
    """float64 ``[R, T, H, D]``, input by input."""
    rows, heads, inputs, width = query.shape
    out = torch.empty(rows, inputs, heads, width, dtype=torch.float64)
    share, window = heads // keys.shape[1], inputs if levels is None else levels.shape[1]
    for row in range(rows):
        length = int(lengths[row])
        for place in range(inputs):
            seen = [*range(length), *range(length, length + place + 1)] if place < window else [length + place]
            if place < window and levels is not None and (level := int(levels[row, place])) > 0:
                seen.append(length + window + level - 1)
            for head in range(heads):
                k, v = (tensor[row, head // share, seen].double() for tensor in (keys, values))
                out[row, place, head] = (k @ query[row, head, place].double() * scale).softmax(0) @ v
    return out
