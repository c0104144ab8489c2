"""Columns and mask against their description, said once more, slowly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2.denoising import NoiseLevels
from sjd2.training import NoisePlan, TuningNoise, draw_plan
from sjd2.training.columns import attention_mask, lay_out


class Column(NamedTuple):
    kind: str
    index: int
    """Of the prompt token (counted from the first real one), the image token or the level."""
    level: int = 0
    window: int = -1
    begin: int = 0
    """Image token in the window's first slot."""


def columns_of(padding: int, prompt: int, plan: NoisePlan, row: int, timesteps: int) -> list[Column]:
    columns = [Column("padding", 0)] * padding
    columns += [Column("prompt", index) for index in range(prompt)]
    columns += [Column("image", index, level) for index, level in enumerate(plan.sequence_levels[row].tolist())]
    for window, (start, levels) in enumerate(zip(plan.window_start[row].tolist(), plan.window_levels[row].tolist(), strict=True)):
        columns += [Column("slot", start + slot, level, window, start) for slot, level in enumerate(levels)]
    return columns + [Column("timestep", level, level) for level in range(1, timesteps + 1)]


def sees(one: Column, other: Column) -> bool:
    if one.kind in ("padding", "timestep") or other.kind == "padding":
        return False
    if other.kind == "timestep":
        return one.level == other.level
    if one.kind == "prompt":
        return other.kind == "prompt" and other.index <= one.index
    if one.kind == "image":
        return other.kind == "prompt" or (other.kind == "image" and other.index <= one.index)
    if other.kind == "slot":
        return other.window == one.window and other.index <= one.index
    return other.kind == "prompt" or other.index < one.begin


@given(
    st.integers(2, 12), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(["windows", "segments"]),
    st.integers(1, 3), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.integers(0, 2**60),
)  # fmt: skip
def test_columns_are_what_their_description_says(count, prompts, layout, windows, window, steps, timesteps, seed):
    noise = TuningNoise(NoiseLevels.karras(steps), layout, windows, window, (1, 3))
    plan = NoisePlan.stack([draw_plan(count, noise, torch.Generator().manual_seed(seed + row)) for row in range(len(prompts))])
    width = max(prompts)
    mask = torch.tensor([[0] * (width - prompt) + [1] * prompt for prompt in prompts])
    columns = lay_out(mask, plan, steps if timesteps else 0)
    visible = attention_mask(columns)
    for row, prompt in enumerate(prompts):
        expected = columns_of(width - prompt, prompt, plan, row, steps if timesteps else 0)
        assert visible[row, 0].tolist() == [[i == j or sees(one, other) for j, other in enumerate(expected)] for i, one in enumerate(expected)]
        for index, column in enumerate(expected):
            fed = column.kind in ("image", "slot")
            last = column.kind == "prompt" and column.index == prompt - 1
            assert columns.token[row, index] == (column.index if fed else -1)
            assert columns.target[row, index] == (column.index + 1 if fed else 0 if last else -1)
            assert columns.level[row, index] == column.level
            position = {"prompt": column.index, "image": prompt + column.index, "slot": prompt + column.index}.get(column.kind, 0)
            assert columns.position[row, index] == position
