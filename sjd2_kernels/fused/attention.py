"""Kernels: attention of a window over the valid prefix of every row, its columns split over programs.

The heads of a group share their keys: a program takes all inputs of all of them, so that keys and values are read once per group as long as
they fit a tile (``TILES``; beyond it once per tile, which the cache of the chip serves). Bytes read are those of the valid columns, up to a
block's end, whatever the capacity is and whether they lie in one piece or in pages:

    2 · R · G · (length + T) · D elements of keys and values

A few heads of a few rows do not fill a GPU, so the columns of a row are divided evenly over ``SPLITS`` programs, each row's by its own length. Each
leaves its sums in float32, and a second kernel puts them together in a fixed order. Not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import INTERPRETED
from .logits import launch_options

__all__ = ["AttentionPlan", "attention_plan", "window_attention_fused"]

#: By kind of GPU, what its registers hold: rows of a tile (inputs × heads of a group), and elements of a block of keys.
TILES = {"amd": (64, 8192), "ampere": (128, 4096), "hopper": (128, 8192)}

#: Programs that fill a GPU: two for each multiprocessor of an H100. In the interpreter programs run one after the other.
PROGRAMS = 264

#: Columns that a split is worth.
LEAST_COLUMNS = 128

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def window_attention_kernel(
    query_ptr,  # [R, H, T, D]
    keys_ptr,  # [R, G, S, D], or pages [N, G, P, D]; like values
    values_ptr,
    lengths_ptr,  # [R]
    levels_ptr,  # [R, W]
    table_ptr,  # [R, M]
    out_ptr,  # [R, T, H, D], written if SPLITS is 1
    part_sum_ptr,  # [R, G, SPLITS, M, D], written otherwise, like part_log: log2 of the weights' sum
    part_log_ptr,  # [R, G, SPLITS, M]
    T,
    W,
    S,
    groups,
    scale,
    stride_query_r,
    stride_query_h,
    stride_query_t,
    stride_query_d,
    stride_keys_r,
    stride_keys_h,
    stride_keys_s,
    stride_keys_d,
    stride_values_r,
    stride_values_h,
    stride_values_s,
    stride_values_d,
    stride_lengths_r,
    stride_levels_r,
    stride_levels_w,
    stride_table_r,
    stride_table_m,
    D: tl.constexpr,
    SHARE: tl.constexpr,  # heads of a group
    HAS_LEVELS: tl.constexpr,
    PAGE: tl.constexpr,  # P, or 0: rows lie in one piece
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Inputs × heads ``[BLOCK_M]`` of a group of a row, over one split of the columns that they see."""
    # All on one axis of the grid, as the others end at 65,535; tiles of the same keys are neighbours.
    tiles = tl.cdiv(T * SHARE, BLOCK_M)
    tile, split, pair = tl.program_id(0) % tiles, tl.program_id(0) // tiles % SPLITS, tl.program_id(0) // (tiles * SPLITS)
    row, group = (pair // groups).to(tl.int64), pair % groups
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = place < T * SHARE
    t, head = place // SHARE, group * SHARE + place % SHARE
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    query = tl.load(
        query_ptr + row * stride_query_r + (head * stride_query_h + t * stride_query_t)[:, None] + d[None, :] * stride_query_d,
        mask=live[:, None] & wide[None, :],
        other=0.0,
    )
    length = tl.load(lengths_ptr + row * stride_lengths_r).to(tl.int32)
    if HAS_LEVELS:
        level = tl.load(levels_ptr + row * stride_levels_r + t * stride_levels_w, mask=live & (t < W), other=0).to(tl.int32)
        timestep = tl.where(level > 0, W - 1 + level, t)  # counted from the first input, as ``ahead`` is
        seen = length + T
    else:
        seen = length + tl.minimum(T, ((tile + 1) * BLOCK_M - 1) // SHARE + 1)
    seen = tl.minimum(seen, S)
    blocks = (seen + BLOCK_N - 1) // BLOCK_N
    first = (split * blocks // SPLITS) * BLOCK_N
    last = tl.minimum(((split + 1) * blocks // SPLITS) * BLOCK_N, seen)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    keys_ptr += group * stride_keys_h
    values_ptr += group * stride_values_h
    if PAGE == 0:
        keys_ptr += row * stride_keys_r
        values_ptr += row * stride_values_r
    for start in range(first, last, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        there = column < last
        if PAGE == 0:
            keys_at, values_at = column * stride_keys_s, column * stride_values_s
        else:
            page = tl.load(table_ptr + row * stride_table_r + (column // PAGE) * stride_table_m, mask=there, other=-1)
            there = page >= 0
            keys_at = page * stride_keys_r + (column % PAGE) * stride_keys_s
            values_at = page * stride_values_r + (column % PAGE) * stride_values_s
        keys = tl.load(keys_ptr + keys_at[None, :] + d[:, None] * stride_keys_d, mask=there[None, :] & wide[:, None], other=0.0)
        scores = tl.dot(query, keys, input_precision="ieee") * (scale * LOG2_E)
        ahead = (column - length)[None, :]
        visible = ahead <= t[:, None]
        if HAS_LEVELS:
            visible = tl.where((t < W)[:, None], visible | (ahead == timestep[:, None]), ahead == t[:, None])
        scores = tl.where(visible & there[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        # Nothing seen so far: any finite number does, for all weights are 0.
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - reference[:, None])
        rescale = tl.exp2(best - reference)
        weight = weight * rescale + tl.sum(weights, axis=1)
        values = tl.load(values_ptr + values_at[:, None] + d[None, :] * stride_values_d, mask=there[:, None] & wide[None, :], other=0.0)
        total = tl.dot(weights.to(values.dtype), values, acc=total * rescale[:, None], input_precision="ieee")
        best = higher

    # A row that found no room in its cache has inputs that see nothing; its tokens are worthless, but not NaN.
    mean = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    if SPLITS == 1:
        to = (row * T + t) * (groups * SHARE) + head
        tl.store(out_ptr + to[:, None] * D + d[None, :], mean.to(out_ptr.dtype.element_ty), mask=live[:, None] & wide[None, :])
    else:
        to = ((row * groups + group) * SPLITS + split) * (T * SHARE) + place
        tl.store(part_sum_ptr + to[:, None] * D + d[None, :], mean, mask=live[:, None] & wide[None, :])
        tl.store(part_log_ptr + to, tl.where(weight == 0.0, float("-inf"), best + tl.log2(tl.where(weight == 0.0, 1.0, weight))), mask=live)


@triton.jit
def merge_splits_kernel(
    part_sum_ptr,  # [R, G, SPLITS, M, D]
    part_log_ptr,  # [R, G, SPLITS, M]
    out_ptr,  # [R, T, H, D], written
    T,
    groups,
    D: tl.constexpr,
    SHARE: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One input of one head: the means of the splits, weighted."""
    pair, place = (tl.program_id(0) // (T * SHARE)).to(tl.int64), tl.program_id(0) % (T * SHARE)
    split = tl.arange(0, SPLITS_PADDED)
    d = tl.arange(0, BLOCK_D)
    source = (pair * SPLITS + split) * (T * SHARE) + place
    exists = split < SPLITS
    logs = tl.load(part_log_ptr + source, mask=exists, other=float("-inf"))
    best = tl.max(logs, axis=0)
    weights = tl.exp2(logs - tl.where(best == float("-inf"), 0.0, best))
    means = tl.load(part_sum_ptr + source[:, None] * D + d[None, :], mask=exists[:, None] & (d < D)[None, :], other=0.0)
    mass = tl.sum(weights, axis=0)
    mean = tl.sum(means * weights[:, None], axis=0) / tl.where(mass == 0.0, 1.0, mass)
    row, group = pair // groups, pair % groups
    to = (row * T + place // SHARE) * (groups * SHARE) + group * SHARE + place % SHARE
    tl.store(out_ptr + to * D + d, mean.to(out_ptr.dtype.element_ty), mask=d < D)


@dataclass(frozen=True)
class AttentionPlan:
    """Tiles of a call, and over how many programs the columns of a tile are divided."""

    block_m: int
    block_n: int
    block_d: int
    tiles: int
    splits: int
    warps: int


def _kind(device: torch.device) -> str:
    """Which row of ``TILES`` holds; the interpreter has room for everything."""
    if torch.version.hip:
        return "amd"
    return "hopper" if device.type == "cpu" or torch.cuda.get_device_capability(device)[0] >= 9 else "ampere"


def attention_plan(kind: str, rows: int, groups: int, share: int, inputs: int, columns: int, width: int, item_bytes: int) -> AttentionPlan:
    """The plan for ``rows`` of ``groups`` groups of ``share`` heads that are ``width`` wide, ``inputs`` over at most ``columns``."""
    most, keys = TILES[kind]
    block_d = max(16, triton.next_power_of_2(width))
    tile = min(most, most * (128 if item_bytes == 2 else 32) // block_d)  # multiplying float32 exactly takes more registers
    block_m = max(16, min(tile, triton.next_power_of_2(inputs * share)))
    block_n = min(64, keys // block_d) if item_bytes == 2 else 16
    warps = 8 if block_m == 128 or block_m * block_d >= 16_384 or item_bytes == 4 else 4
    tiles = triton.cdiv(inputs * share, block_m)
    wanted = triton.cdiv(1 if INTERPRETED else PROGRAMS, tiles * rows * groups)
    splits = max(1, min(wanted, columns // LEAST_COLUMNS, 32))
    return AttentionPlan(block_m, block_n, block_d, tiles, splits, warps)


def _strides(name: str, axes: str, tensor: torch.Tensor | None) -> dict[str, int]:
    strides = (0,) * len(axes) if tensor is None else tensor.stride()
    return {f"stride_{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}


def window_attention_fused(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    levels: torch.Tensor | None,
    block_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See :func:`sjd2_kernels.window_attention`: one launch, or two where columns are split."""
    rows, heads, inputs, width = query.shape
    groups, columns = keys.shape[1], keys.shape[2] * (1 if block_table is None else block_table.shape[1])
    share, device = heads // groups, query.device
    out = torch.empty(rows, inputs, heads, width, dtype=query.dtype, device=device)
    if out.numel() == 0:
        return out
    plan = attention_plan(_kind(device), rows, groups, share, inputs, columns, width, query.element_size())
    parts = (rows, groups, plan.splits, inputs * share) if plan.splits > 1 else (1,)
    part_sum = torch.empty((*parts, width) if plan.splits > 1 else (1,), dtype=torch.float32, device=device)
    part_log = torch.empty(parts, dtype=torch.float32, device=device)
    shared = {"D": width, "SHARE": share, "SPLITS": plan.splits, "BLOCK_D": plan.block_d}
    with torch.cuda.device_of(query):
        window_attention_kernel[(plan.tiles * plan.splits * rows * groups,)](
            query_ptr=query,
            keys_ptr=keys,
            values_ptr=values,
            lengths_ptr=lengths,
            levels_ptr=lengths if levels is None else levels,
            table_ptr=lengths if block_table is None else block_table,
            out_ptr=out,
            part_sum_ptr=part_sum,
            part_log_ptr=part_log,
            T=inputs,
            W=inputs if levels is None else levels.shape[1],
            S=columns,
            groups=groups,
            scale=scale,
            **_strides("query", "rhtd", query),
            **_strides("keys", "rhsd", keys),
            **_strides("values", "rhsd", values),
            **_strides("lengths", "r", lengths),
            **_strides("levels", "rw", levels),
            **_strides("table", "rm", block_table),
            PAGE=0 if block_table is None else keys.shape[2],
            HAS_LEVELS=levels is not None,
            BLOCK_M=plan.block_m,
            BLOCK_N=plan.block_n,
            **shared,
            **launch_options(plan.warps),
        )
        if plan.splits > 1:
            merge_splits_kernel[(rows * groups * inputs * share,)](
                part_sum_ptr=part_sum,
                part_log_ptr=part_log,
                out_ptr=out,
                T=inputs,
                groups=groups,
                SPLITS_PADDED=triton.next_power_of_2(plan.splits),
                **shared,
                **launch_options(4),
            )
    return out
