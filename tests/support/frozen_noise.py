"""Gives a model's own ``generate`` the random numbers of the decoder: greedy decoding of scores plus the frozen Gumbel noise is ``ar``."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from sjd2_kernels.random import gumbel_noise


class FrozenGumbel(LogitsProcessor):
    """Adds the noise of ``seeds [B]`` to the scores of ``vocab_size`` image ids from ``image_id_start`` on; all others become impossible.

    Put last in the list and used with ``do_sample=False``, it turns ``generate`` into sampling with the decoder's own numbers. Positions count
    the calls: one per token.

    Args:
        others: leave the scores of other ids as they are instead, for another processor decides where they may stand.
    """

    def __init__(self, seeds: list[int], image_id_start: int, vocab_size: int, *, others: bool = False):
        self.seeds, self.start, self.vocab_size, self.others = torch.tensor(seeds), image_id_start, vocab_size, others
        self.position = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = torch.full((len(self.seeds), 1), self.position)
        self.position += 1
        noise = gumbel_noise(self.seeds, place, self.vocab_size, dtype=torch.float64)[:, 0]
        image = slice(self.start, self.start + self.vocab_size)
        noisy = scores.clone() if self.others else torch.full_like(scores, -torch.inf)
        noisy[:, image] = scores[:, image] + noise.to(scores.dtype)
        return noisy
