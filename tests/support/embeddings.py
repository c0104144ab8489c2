"""Random calls of ``denoise``."""

from __future__ import annotations

import torch


def denoising_case(batch: int, window: int, width: int, dtype: torch.dtype, *, vocab: int = 20, seed: int = 0) -> tuple[list[torch.Tensor], dict]:
    """(embeds, weight, mean, std) and the named arguments; levels rise along the window, the first third of it is clean."""
    generator = torch.Generator().manual_seed(seed)
    weight = (0.5 + torch.randn(vocab, width, generator=generator)).to(dtype)
    embeds = torch.randn(batch, window, 2 * width, generator=generator).to(dtype)[..., ::2]
    levels = torch.rand(batch, window, generator=generator).sort(1).values
    levels[:, : window // 3] = 0
    committed = torch.randint(0, window + 1, (batch,), generator=generator)
    committed[0] = window // 2
    shifted = torch.cat([levels, torch.ones_like(levels)], 1).gather(1, torch.arange(window) + committed[:, None])
    steps = (4 * torch.rand(batch, window, generator=generator)).floor() / 3  # to clean, a third, two thirds, not at all
    arguments = {
        "tokens": torch.randint(0, vocab, (batch, window), generator=generator),
        "committed": committed,
        "levels": levels,
        "next_levels": shifted * steps,
        "seeds": torch.randint(-(2**62), 2**62, (batch,), generator=generator),
        "position": torch.randint(0, 5000, (batch,), generator=generator),
    }
    return [embeds, weight, weight.float().mean(0), weight.float().std(0)], arguments
