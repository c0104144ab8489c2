"""The inputs of a training sequence, column by column, and what each may see.

prompt | image tokens 0 … N − 2 | window 1 | … | window M | timestep tokens 1 … K
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..denoising.timesteps import TIMESTEP_POSITION
from .plan import NoisePlan

__all__ = ["Columns", "attention_mask", "lay_out"]

PADDING, TIMESTEP, SEQUENCE = -2, -1, 0  # groups; windows are 1 … M


class Columns(NamedTuple):
    """int64 ``[B, T]`` each."""

    group: torch.Tensor
    """``PADDING``, ``TIMESTEP``, ``SEQUENCE`` (prompt and image), or the number of a window."""
    position: torch.Tensor
    """Rotary position."""
    front: torch.Tensor
    """Of a window's slots: the position of its first one. They see the sequence before that."""
    level: torch.Tensor
    """Noise level; of a timestep token, the one it stands for."""
    token: torch.Tensor
    """Index of the image token that is fed, −1 for prompt and timesteps."""
    target: torch.Tensor
    """Index of the image token that is predicted, −1 for none: the next one, for the last input of the prompt the first."""


def lay_out(prompt_mask: torch.Tensor, plan: NoisePlan, timesteps: int) -> Columns:
    """Columns of a batch whose prompts are padded on the left (``prompt_mask [B, P]``, 1 where real), with this many timestep tokens."""
    batch, inputs = plan.sequence_levels.shape
    windows, slots = plan.window_levels.shape[1:]
    device = prompt_mask.device
    lengths = prompt_mask.sum(1, keepdim=True)
    image = torch.arange(inputs, device=device).expand(batch, -1)
    slot = (plan.window_start[..., None] + torch.arange(slots, device=device)).view(batch, windows * slots)
    window = torch.arange(1, windows + 1, device=device).repeat_interleave(slots).expand(batch, -1)
    timestep = torch.arange(1, timesteps + 1, device=device).expand(batch, -1)
    no_prompt, no_timestep = torch.full_like(prompt_mask, -1), torch.full_like(timestep, -1)
    target = no_prompt.index_fill(1, torch.tensor([prompt_mask.shape[1] - 1], device=device), 0)
    front = lengths + plan.window_start.repeat_interleave(slots, 1)
    return Columns(
        group=torch.cat([torch.where(prompt_mask > 0, SEQUENCE, PADDING), SEQUENCE * image, window, torch.full_like(timestep, TIMESTEP)], 1),
        position=torch.cat(
            [(prompt_mask.cumsum(1) - 1).clamp(min=0), lengths + image, lengths + slot, torch.full_like(timestep, TIMESTEP_POSITION)], 1
        ),
        front=torch.cat([0 * prompt_mask, 0 * image, front, 0 * timestep], 1),
        level=torch.cat([0 * prompt_mask, plan.sequence_levels, plan.window_levels.reshape(batch, windows * slots), timestep], 1),
        token=torch.cat([no_prompt, image, slot, no_timestep], 1),
        target=torch.cat([target, image + 1, slot + 1, no_timestep], 1),
    )


def attention_mask(columns: Columns) -> torch.Tensor:
    """bool ``[B, 1, T, T]``, what each column (a row of the mask) sees.

    The sequence is causal; a window's slots see the sequence before the window and the slots up to themselves; every noisy input sees the
    timestep token of its level; timestep tokens and padding see themselves.
    """
    ahead, behind = (Columns(*(value.unsqueeze(axis) for value in columns)) for axis in (2, 1))  # queries, keys
    itself = torch.eye(columns.group.shape[1], dtype=torch.bool, device=columns.group.device)
    same = (ahead.group == behind.group) & (ahead.group >= SEQUENCE) & (behind.position <= ahead.position)
    before_window = (ahead.group > SEQUENCE) & (behind.group == SEQUENCE) & (behind.position < ahead.front)
    own_level = (ahead.group >= SEQUENCE) & (behind.group == TIMESTEP) & (ahead.level == behind.level)
    return (itself | same | before_window | own_level)[:, None]
