"""Speculative Jacobi decoding the way research scripts write it, to be timed beside ours: one image, one eager operation after the other.

Everything that costs such scripts their gain is in it on purpose: a cache that grows by concatenation and is cropped, logits of the whole vocabulary
with a mask, probabilities of the whole window kept as tensors, a Python loop over the drafts with a value read back for each. What it draws has the
law of AR sampling all the same (``Rule.FRESH`` with drafts from the neighbour's distribution), which its test checks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

__all__ = ["PublishedRun", "published_sjd"]


@dataclass(frozen=True)
class PublishedRun:
    """Ids of the vocabulary, int64 ``[N]``; forwards without the prompt's; seconds of the loop, and of those inside the model's forward."""

    ids: torch.Tensor
    forwards: int
    seconds: float
    forward_seconds: float


def _probabilities(logits: torch.Tensor, allowed: torch.Tensor, guidance: float, temperature: float, top_k: int) -> torch.Tensor:
    """``[W, vocabulary]`` of a conditional and an unconditional row of logits ``[2, W, vocabulary]``."""
    conditional, unconditional = logits.float()
    scores = (unconditional + guidance * (conditional - unconditional)).masked_fill(~allowed, -torch.inf) / temperature
    if top_k:
        scores = scores.masked_fill(scores < scores.topk(min(top_k, scores.shape[-1]), dim=-1).values[:, -1:], -torch.inf)
    return scores.softmax(-1)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def published_sjd(
    model: Any,
    prompts: torch.Tensor,
    image_ids: range,
    count: int,
    window: int,
    *,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int = 0,
    most: int | None = None,
) -> PublishedRun:
    """Decode ``count`` image tokens.

    Args:
        model: a Hugging Face causal language model, called as it is.
        prompts: int64 ``[2, P]``: the prompt and its unconditional partner, of one length.
        image_ids: of the vocabulary.
        window: drafts per forward; 1 is AR.
        most: forwards after which to stop, finished or not.
    """
    device = prompts.device
    allowed = torch.zeros(model.config.get_text_config(decoder=True).vocab_size, dtype=torch.bool, device=device)
    allowed[image_ids.start : image_ids.stop] = True
    cache = DynamicCache()
    model(input_ids=prompts[:, :-1], past_key_values=cache, use_cache=True)
    tokens = [int(prompts[0, -1])]
    drafts = torch.empty(0, dtype=torch.int64, device=device)
    draft_probabilities: torch.Tensor | None = None
    forwards, inside = 0, 0.0
    _synchronise(device)
    began = time.perf_counter()
    while len(tokens) <= count and forwards != most:
        width = min(window, count + 1 - len(tokens))
        fed = torch.cat([torch.tensor([tokens[-1]], device=device), drafts[: width - 1]])
        _synchronise(device)
        started = time.perf_counter()
        # Both branches end their prompts with the same id, and share the drafts.
        first = prompts[:, -1:] if len(tokens) == 1 else fed[:1].expand(2, 1)
        logits = model(input_ids=torch.cat([first, fed[1:].expand(2, -1)], dim=1), past_key_values=cache, use_cache=True).logits
        _synchronise(device)
        inside += time.perf_counter() - started
        forwards += 1
        p = _probabilities(logits, allowed, guidance, temperature, top_k)
        accepted = 0
        updated = torch.multinomial(p, 1).squeeze(1)
        for slot in range(len(fed) - 1):
            draft = int(fed[slot + 1])
            q = draft_probabilities[slot] if draft_probabilities is not None else None
            if q is not None and float(torch.rand((), device=device)) * float(q[draft]) < float(p[slot, draft]):
                updated[slot] = draft
                accepted += 1
                continue
            if q is not None:
                residual = (p[slot] - q).clamp(min=0)
                if float(residual.sum()) > 0:
                    updated[slot] = torch.multinomial(residual, 1)
            break
        tokens += updated[: accepted + 1].tolist()
        if len(fed) > accepted + 1:
            cache.crop(accepted + 1 - len(fed))
        # Slots behind what is final stay, with the distributions that they were drawn from; new ones are drawn from the last slot's.
        rest, rest_p = updated[accepted + 1 :], p[accepted + 1 :]
        missing = max(window - 1 - len(rest), 0)
        fresh = torch.multinomial(p[-1], missing, replacement=True) if missing else rest[:0]
        drafts = torch.cat([rest, fresh])
        draft_probabilities = torch.cat([rest_p, p[-1:].expand(missing, -1)])
    _synchronise(device)
    return PublishedRun(torch.tensor(tokens[1 : count + 1]), forwards, time.perf_counter() - began, inside)
