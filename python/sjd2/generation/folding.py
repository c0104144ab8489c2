"""Which of Hugging Face's logits processors the fused ops do themselves.

``generate`` applies its processors one after the other, the ops do guidance, allowed ids, temperature, top-k and top-p, in this order. Those at
the end of the list that are, in this order, the same, are left to the ops; the others come before them and remain what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import (
    LogitNormalization,
    NoBadWordsLogitsProcessor,
    SuppressTokensLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from ..arguments import number

__all__ = ["Guidance", "LogitsFunction", "Sampling", "fold"]

#: Scores ``[B, V]`` of the next token for tokens ``[B, N]``.
LogitsFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: Classes that the ops replace, in the order in which the ops work.
_GUIDANCE, _ALLOWED, _TEMPERATURE, _TOP_K, _TOP_P, _ALL = range(6)

#: Keep count of their calls, so that they can only see one token after the other.
_STATEFUL = (SynthIDTextWatermarkLogitsProcessor,)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance as Hugging Face does it: between normalised scores.

    Attributes:
        scale: s; 1 is off.
        negative_ids, negative_mask: ``[B', N]``, what the unconditional branch is fed, and which columns of it are none of the padding; ``None``:
            the prompt's last token, and all.
    """

    scale: float
    negative_ids: torch.Tensor | None = None
    negative_mask: torch.Tensor | None = None

    def __call__(self, scores: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Guided scores ``[B, V]``; what is masked stays masked."""
        scores, unconditional = scores.log_softmax(-1), unconditional.log_softmax(-1)
        guided = self.scale * (scores - unconditional) + unconditional
        return torch.where(scores == -torch.inf, scores, guided)


@dataclass
class Sampling:
    """What became of a list of logits processors.

    Attributes:
        guidance: if there is an unconditional branch.
        guidance_scale, temperature, top_k, top_p: for ``LogitsProcessing.create``.
        suppressed: ids of the vocabulary that may not be drawn.
        before: what is applied before the ops, in this order; ``guidance`` is among them if the ops cannot do it.
    """

    guidance: Guidance | None = None
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppressed: list[int] = field(default_factory=list)
    before: list[LogitsFunction | Guidance] = field(default_factory=list)

    def _absorb(self, processor: Any, stages_left: int) -> int | None:
        """Take over what ``processor`` does if the ops do it in one of their first ``stages_left`` stages; its stage, or ``None``."""
        kind = type(processor)
        keeps_one = getattr(processor, "min_tokens_to_keep", 1) == 1 and getattr(processor, "filter_value", -torch.inf) == -torch.inf
        if kind is LogitNormalization:  # what it adds is the same for all ids
            return stages_left
        if kind is TopPLogitsWarper and stages_left > _TOP_P and keeps_one and processor.top_p > 0:
            self.top_p = number("top_p", processor.top_p)
            return _TOP_P
        if kind is TopKLogitsWarper and stages_left > _TOP_K and keeps_one:
            self.top_k = processor.top_k
            return _TOP_K
        if kind is TemperatureLogitsWarper and stages_left > _TEMPERATURE:
            self.temperature = number("temperature", processor.temperature)
            return _TEMPERATURE
        if kind is SuppressTokensLogitsProcessor and stages_left > _GUIDANCE + 1:
            self.suppressed += processor.suppress_tokens.tolist()
            return _ALLOWED + 1  # there may be several
        if kind is NoBadWordsLogitsProcessor and stages_left > _GUIDANCE + 1 and all(len(word) == 1 for word in processor.sequence_bias):
            self.suppressed += [token for (token,) in processor.sequence_bias]
            return _ALLOWED + 1
        if kind is Guidance and stages_left > _GUIDANCE:
            self.guidance_scale = processor.scale
            return _GUIDANCE
        return None


def _guidance(processor: UnbatchedClassifierFreeGuidanceLogitsProcessor) -> Guidance:
    context: dict[str, Any] = processor.unconditional_context
    return Guidance(number("guidance_scale", processor.guidance_scale), context["input_ids"], context["attention_mask"])


def fold(processors: Sequence[Any], *, greedy: bool) -> Sampling:
    """Split ``processors`` into what the ops do and what is applied before.

    Args:
        greedy: whether the highest score is taken; the law does not matter then.

    Raises:
        ValueError: processors that keep a state from token to token, or several that guide.
    """
    listed = [_guidance(one) if type(one) is UnbatchedClassifierFreeGuidanceLogitsProcessor else one for one in processors]
    sampling, stages_left = Sampling(), _ALL
    guides = [one for one in listed if isinstance(one, Guidance)]
    if len(guides) > 1:
        raise ValueError(f"logits_processor: expected at most one that guides, got {len(guides)}")
    sampling.guidance = guides[0] if guides and guides[0].scale != 1 else None
    while listed:
        stage = sampling._absorb(listed[-1], stages_left)
        if stage is None:
            break
        listed.pop()
        stages_left = stage
    for one in listed:
        if isinstance(one, _STATEFUL):
            raise ValueError(f"logits_processor: expected functions of the tokens so far, got {type(one).__name__}, which counts its calls")
        if not callable(one):
            raise ValueError(f"logits_processor: expected a logits processor, got {one!r}")
    sampling.before = cast("list[LogitsFunction | Guidance]", listed)
    if greedy:
        sampling.temperature, sampling.top_k, sampling.top_p = 0.0, 0, 1.0
    return sampling
