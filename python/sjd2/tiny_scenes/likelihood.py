"""What the AR model says of a sequence of image codes: logits, negative log-likelihood, entropy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .text import TEXT_VOCAB_SIZE

__all__ = ["code_logits", "sequence_statistics"]


def code_logits(model: PreTrainedModel, text: PreTrainedTokenizerBase, captions: list[str], codes: torch.Tensor, body: Any = None) -> torch.Tensor:
    """Logits ``[N, T, vocabulary]`` that predict each of the T image codes from the caption and the codes before it."""
    prompt = text(captions, padding="max_length", max_length=10, return_tensors="pt").to(codes.device)
    ids = torch.cat([prompt["input_ids"], codes[:, :-1] + TEXT_VOCAB_SIZE], dim=1)
    mask = torch.cat([prompt["attention_mask"], torch.ones_like(codes[:, :-1])], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = (model.model if body is None else body)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, -codes.shape[1] :])


@torch.no_grad()
def sequence_statistics(
    model: PreTrainedModel, text: PreTrainedTokenizerBase, captions: list[str], codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of ``codes [N, T]`` and entropy of the predictions, both in nats per token, ``[N]`` each, over the image ids."""
    logits = code_logits(model, text, captions, codes).float()[..., TEXT_VOCAB_SIZE:].log_softmax(-1)
    nll = -logits.gather(-1, codes[..., None]).squeeze(-1).mean(1)
    return nll, -(logits.exp() * logits).sum(-1).mean(1)
