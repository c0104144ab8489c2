"""What ``sjd2.generate`` returns: what Hugging Face's ``generate`` returns, and how it came to be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from ..decoding import RowReport

__all__ = ["GenerateOutput", "padded"]


@dataclass
class GenerateOutput(GenerateDecoderOnlyOutput):
    """With ``return_dict_in_generate``.

    Attributes:
        sequences: int64 ``[B, P + N]``: prompts as they were given, new tokens, padding.
        statistics: a report per row.
        seeds: a seed per row; with the same settings each gives the same tokens again.
    """

    statistics: tuple[RowReport, ...] | None = None
    seeds: tuple[int, ...] | None = None


def padded(tokens: torch.Tensor, lengths: list[int], pad_id: int) -> torch.Tensor:
    """The first ``lengths[b]`` tokens of each row of ``tokens [B, N]``, ``pad_id`` behind them; as wide as the longest."""
    width = max(lengths)
    behind = torch.arange(width, device=tokens.device) >= torch.tensor(lengths, device=tokens.device)[:, None]
    return tokens[:, :width].masked_fill(behind, pad_id)
