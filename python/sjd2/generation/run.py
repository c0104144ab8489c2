"""From a call to what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch

from sjd2_kernels import LogitsProcessing

from ..decoding import Preset, Progress, decode
from .call import Call
from .folding import Guidance
from .output import GenerateOutput, padded
from .slots import SlotRules
from .vocabulary import SliceVocabulary

__all__ = ["run"]


def _tell(call: Call) -> None:
    """Say what costs more than a token-by-token loop would make one expect."""
    slow = [type(one).__name__ for one in call.sampling.before if not isinstance(one, Guidance)]
    if slow:
        warnings.warn(
            f"logits_processor: {', '.join(slow)} applied to every slot of the window, one after the other: exact if what comes out depends on the "
            "tokens so far alone, but slower than what the ops do themselves (temperature, top-k, top-p, guidance, suppressed ids)",
            stacklevel=5,
        )
    if call.ends.criteria:
        names = ", ".join(type(one).__name__ for one in call.ends.criteria)
        warnings.warn(f"stopping_criteria: {names} asked about committed tokens one after the other, without scores", stacklevel=5)


def run(
    call: Call, preset: Preset, seeds: list[int], cache: str, attention: str, callback: Callable[[Progress], None] | None
) -> torch.Tensor | GenerateOutput:
    """Decode."""
    call = call.within_positions()
    model, sampling, device = call.model, call.sampling, call.model.device
    vocabulary = SliceVocabulary(model, call.own_ids)
    end_ids = [token for token in call.ends.ids if vocabulary.slice_id(token) >= 0]
    rules = None
    if sampling.before or call.ends.criteria or len(end_ids) > 1:
        _tell(call)
        ends = torch.tensor(end_ids, dtype=torch.int64, device=device)
        rules = SlotRules(call.input_ids, vocabulary, sampling.before, call.ends.criteria, ends)
    processing = LogitsProcessing.create(
        len(seeds),
        guidance_scale=sampling.guidance_scale,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        allowed=vocabulary.allowed(sampling.suppressed),
        device=device,
    )
    layout = replace(call.layout, end_id=vocabulary.slice_id(end_ids[0])) if len(end_ids) == 1 else call.layout
    result = decode(
        model,
        call.prompt,
        layout,
        processing,
        preset,
        torch.tensor(seeds, dtype=torch.int64, device=device),
        callback=callback,
        cache=cache,
        attention=attention,
        rules=rules,
    )
    tokens = vocabulary.vocabulary_ids(result.tokens).to(call.input_ids.device)
    lengths = [row.tokens for row in result.rows]
    if call.longest < call.ends.length and call.free and max(lengths) == call.longest:
        warnings.warn(f"max_new_tokens: rows end after {call.longest} tokens, behind which the model has no positions", stacklevel=4)
    for row, length in ({} if rules is None else rules.ends).items():
        lengths[row] = min(lengths[row], length)
    if len(end_ids) > 1:
        for row, ended in enumerate(torch.isin(tokens, torch.tensor(end_ids, device=tokens.device)).tolist()):
            if True in ended[: lengths[row]]:
                lengths[row] = ended.index(True) + 1
    new = padded(tokens, lengths, call.pad_id)
    sequences = new if call.own_ids else torch.cat([call.input_ids, new], dim=1)
    if not call.as_dict:
        return sequences
    statistics = tuple(replace(row, tokens=length) for row, length in zip(result.rows, lengths, strict=True))
    return GenerateOutput(sequences=cast(torch.LongTensor, sequences), statistics=statistics, seeds=tuple(seeds))
