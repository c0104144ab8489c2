"""What every back-end of a registered op must pass: ``opcheck``, and one graph under ``torch.compile``."""

from __future__ import annotations

import torch
from torch.library import opcheck

from sjd2_kernels import LogitsProcessing, Purpose, Rule, denoise, sample, verify, window_attention

from .attention import attention_case
from .embeddings import denoising_case
from .fused import random_window, to


def opchecks(backend: str, device: torch.device) -> None:
    """``torch.library.opcheck`` of every op."""
    logits, uncond, processing, arguments = random_window(2, 4, 30, guided=True, top_k=9, dtype=torch.float16)
    logits, uncond, processing = (to(value, device) for value in (logits, uncond, processing))
    shared = tuple(vars(processing).values())
    named = {name: to(value, device) for name, value in arguments.items()}
    last = named.pop("last")
    rows = {name: named[name] for name in ("seeds", "iteration", "position")}
    opcheck(
        torch.ops.sjd2.verify,
        (
            logits, uncond, *shared, Rule.COUPLED.value, named["drafts"], named["q_row"], last.logits, last.logits_uncond, *last.statistics,
            named["clean"], named["forced"], named["remaining"], *rows.values(), 0.3, -1, backend,
        ),
    )  # fmt: skip
    position = rows["position"][:, None] + torch.arange(4, device=device)
    opcheck(torch.ops.sjd2.sample, (logits, uncond, *shared, rows["seeds"], rows["iteration"], position, int(Purpose.DRAFT), backend))
    tensors, steps = denoising_case(2, 4, 10, torch.float32)
    order = ("tokens", "committed", "levels", "next_levels", "seeds", "position")
    opcheck(torch.ops.sjd2.denoise, (*(t.to(device) for t in tensors), *(steps[name].to(device) for name in order), backend))
    opcheck(torch.ops.sjd2.window_attention, (*_attention_case(device), None, 0.3, backend))


def _attention_case(device: torch.device) -> tuple:
    query, keys, values, *rest = attention_case(2, 4, 2, 5, 9, 8, timesteps=2, device=device)
    return query, torch.nan_to_num(keys, posinf=1.0), torch.nan_to_num(values, nan=1.0), *rest


def compile_in_full(backend: str, device: torch.device) -> None:
    """``torch.compile(fullgraph=True)`` of the public functions gives what they give without it."""
    logits, _, _, arguments = random_window(2, 4, 30)
    logits, named = logits.to(device), {name: to(value, device) for name, value in arguments.items()}
    processing = LogitsProcessing.create(2, top_k=9, device=device)
    tensors, steps = denoising_case(2, 4, 10, torch.float32)
    tensors, steps = [t.to(device) for t in tensors], {name: value.to(device) for name, value in steps.items()}
    position = named["position"][:, None] + torch.arange(4, device=device)
    attention = _attention_case(device)

    def iteration(logits):
        result = verify(logits, None, processing, rule=Rule.COUPLED, backend=backend, **named)
        drawn = sample(logits, None, processing, seeds=named["seeds"], iteration=named["iteration"], position=position, backend=backend)
        attended = window_attention(*attention, backend=backend)
        denoised = denoise(*tensors, backend=backend, **steps)
        return result.tokens, result.kept, result.committed, result.statistics.logsumexp, drawn, denoised, attended

    compiled = torch.compile(iteration, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(logits), iteration(logits), strict=True):
        assert torch.equal(got, wanted)
