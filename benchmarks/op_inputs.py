"""Inputs of the ops for benchmarks, and calls of every back-end on them."""

from __future__ import annotations

from typing import Any

import torch

from sjd2_kernels import LastForward, LogitsProcessing, Purpose, Rule, denoise, sample, verify
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from sjd2_kernels.verify.reference import verify_reference


class Window:
    """Inputs of ``verify`` and ``sample``: half of the slots see almost what they saw before, the others something new."""

    def __init__(self, batch: int, window: int, vocab: int, device: torch.device):
        generator = torch.Generator(device=device).manual_seed(vocab + batch)

        def logits() -> torch.Tensor:
            return (2 * torch.randn(batch, window, vocab, generator=generator, device=device)).to(torch.bfloat16)

        self.logits, self.uncond = logits(), logits()
        settled = torch.rand(batch, window, 1, generator=generator, device=device) < 0.5
        before, before_uncond = (torch.where(settled, now, logits()) for now in (self.logits, self.uncond))
        self.processing = LogitsProcessing.create(batch, guidance_scale=3.0, top_k=min(2048, vocab), device=device)
        z = scaled_logits(before, before_uncond, self.processing)
        statistics = row_statistics(z, self.processing)
        slot = torch.arange(window, device=device).expand(batch, window).contiguous()
        self.rows = {
            "seeds": torch.arange(batch, device=device),
            "iteration": torch.full((batch,), 3, device=device),
        }
        self.arguments = {
            "drafts": log_probabilities(z, statistics).argmax(-1),
            "q_row": slot,
            "last": LastForward(before, before_uncond, statistics),
            "clean": torch.ones_like(slot, dtype=torch.bool),
            "forced": torch.full_like(slot, -1),
            "remaining": torch.full((batch,), 10_000, device=device),
            "position": torch.zeros(batch, dtype=torch.int64, device=device),
            **self.rows,
        }
        self.position = slot
        self.floor = 2 * self.logits.numel() * self.logits.element_size()

    def definition(self, rule: Rule) -> Any:
        """The definition itself, without dispatch."""
        return verify_reference(self.logits, self.uncond, self.processing, rule=rule, **self.arguments, log_keep_ratio=-1.2, end_id=-1)

    def verify(self, rule: Rule, backend: str) -> Any:
        """The public op."""
        return verify(self.logits, self.uncond, self.processing, rule=rule, backend=backend, **self.arguments)

    def sample(self, purpose: Purpose, backend: str) -> torch.Tensor:
        """The public op, on the same logits."""
        return sample(self.logits, self.uncond, self.processing, position=self.position, purpose=purpose, backend=backend, **self.rows)

    def probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """p and q, float32 ``[B, W, V]``, as the peers want them."""
        last = self.arguments["last"]
        now = scaled_logits(self.logits, self.uncond, self.processing)
        before = scaled_logits(last.logits, last.logits_uncond, self.processing)
        return (
            log_probabilities(now, row_statistics(now, self.processing)).exp(),
            log_probabilities(before, last.statistics).exp(),
        )


class NoisyInputs:
    """Inputs of ``denoise``: four tokens were committed, and every slot is at a level of its own."""

    def __init__(self, batch: int, window: int, width: int, device: torch.device, vocab: int = 8192):
        generator = torch.Generator(device=device).manual_seed(0)
        self.weight = torch.randn(vocab, width, generator=generator, device=device).to(torch.bfloat16)
        self.embeds = torch.randn(batch, window, width, generator=generator, device=device).to(torch.bfloat16)
        levels = torch.linspace(0.1, 1, window, device=device).expand(batch, window).contiguous()
        self.arguments = {
            "tokens": torch.randint(vocab, (batch, window), generator=generator, device=device),
            "committed": torch.full((batch,), min(4, window), device=device),
            "levels": levels,
            "next_levels": levels * 0.9,
            "seeds": torch.arange(batch, device=device),
            "position": torch.zeros(batch, dtype=torch.int64, device=device),
        }
        self.mean, self.std = self.weight.float().mean(0), self.weight.float().std(0)
        self.floor = 3 * self.embeds.numel() * self.embeds.element_size()

    def denoise(self, backend: str) -> torch.Tensor:
        """The public op."""
        return denoise(self.embeds, self.weight, self.mean, self.std, backend=backend, **self.arguments)
