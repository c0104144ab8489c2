"""The inputs of a training sequence, column by column, and what each may see."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..denoising.timesteps import TIMESTEP_POSITION
from .plan import NoisePlan

__all__ = ["Columns", "attention_mask", "lay_out"]

PADDING, TIMESTEP, SEQUENCE = -2, -1, 0  # groups; windows are 1 … M


class Columns(NamedTuple):
    """int64 ``[B, T]`` each: prompt, image tokens, windows, timestep tokens, in this order."""

    group: torch.Tensor
    """``PADDING``, ``TIMESTEP``, ``SEQUENCE``, or the number of a window."""
    position: torch.Tensor
    """Rotary position."""
    front: torch.Tensor
    """Of a window's slots: the position of its first one. It sees the sequence before that."""
    level: torch.Tensor
    """Noise level; of a timestep token, the one it stands for."""
    token: torch.Tensor
    """Index of the image token that is fed, −1 for prompt and timesteps."""
    target: torch.Tensor
    """Index of the image token that is predicted, −1 for none."""


def lay_out(prompt_mask: torch.Tensor, plan: NoisePlan, steps: int) -> Columns:
    """Columns of a batch whose prompts are padded on the left (``prompt_mask [B, P]``, 1 where real), with ``steps`` timestep tokens (0 for none)."""
    batch = len(prompt_mask)
    inputs = plan.sequence_levels.shape[1]
    device = prompt_mask.device
    starts, window_levels = plan.window_start.to(device), plan.window_levels.to(device)
    windows, slots = window_levels.shape[1:] if starts.shape[1] else (0, 0)

    def rows(values: torch.Tensor) -> torch.Tensor:
        return values.to(device).expand(batch, -1)

    lengths = prompt_mask.sum(1, keepdim=True)
    prompt_position = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    image = rows(torch.arange(inputs))
    fed = (starts[..., None] + torch.arange(slots, device=device)).reshape(batch, windows * slots)
    number = rows(torch.arange(1, windows + 1).repeat_interleave(slots))
    level_of_timestep = rows(torch.arange(1, steps + 1))
    nothing, none = torch.zeros_like(prompt_position), torch.full_like(prompt_position, -1)
    first_target = none.clone()
    first_target[:, -1] = 0  # the last prompt input predicts the first image token
    no_token = torch.full_like(level_of_timestep, -1)
    group_of_prompt = torch.where(prompt_mask.bool(), SEQUENCE, PADDING)
    return Columns(
        group=torch.cat([group_of_prompt, torch.zeros_like(image), number, torch.full_like(level_of_timestep, TIMESTEP)], 1),
        position=torch.cat([prompt_position, lengths + image, lengths + fed, torch.full_like(level_of_timestep, TIMESTEP_POSITION)], 1),
        front=torch.cat([nothing, torch.zeros_like(image), lengths + starts.repeat_interleave(slots, 1), torch.zeros_like(level_of_timestep)], 1),
        level=torch.cat([nothing, plan.sequence_levels.to(device), window_levels.reshape(batch, -1), level_of_timestep], 1),
        token=torch.cat([none, image, fed, no_token], 1),
        target=torch.cat([first_target, image + 1, fed + 1, no_token], 1),
    )


def attention_mask(columns: Columns) -> torch.Tensor:
    """bool ``[B, 1, T, T]``: causal in the sequence; a window sees the clean sequence before it and its own slots; every noisy slot sees the
    timestep token of its level; timestep tokens and padding see themselves."""
    ahead, behind = (Columns(*(value.unsqueeze(axis) for value in columns)) for axis in (2, 1))  # queries, keys
    itself = torch.eye(columns.group.shape[1], dtype=torch.bool, device=columns.group.device)
    earlier = behind.position <= ahead.position
    same = (ahead.group == behind.group) & (behind.group >= SEQUENCE) & earlier
    before_window = (ahead.group > SEQUENCE) & (behind.group == SEQUENCE) & (behind.position < ahead.front)
    own_level = (behind.group == TIMESTEP) & (ahead.group >= SEQUENCE) & (ahead.level == behind.level)
    return (itself | same | before_window | own_level)[:, None]
