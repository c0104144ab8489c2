"""Random calls of ``verify``, for property-based tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from sjd2_kernels import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, LogitsProcessing
from sjd2_kernels.processing import row_statistics, scaled_logits


@st.composite
def windows(draw, dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16), largest_vocab=12):
    """A random call of ``verify``: (logits, uncond, processing, arguments without a rule)."""
    batch, window, vocab = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, largest_vocab))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    guided = draw(st.booleans())

    def logits() -> torch.Tensor:
        values = torch.randn(batch, window, 2 * vocab, generator=generator) * draw(st.sampled_from([0.1, 1.0, 8.0]))
        if draw(st.booleans()):
            values = values.round()  # ties
        strided = values.to(dtype)[..., ::2]
        if vocab > 1 and draw(st.booleans()):
            strided[..., 0] = -torch.inf
        return strided

    def rows(values):
        return [draw(st.sampled_from(values)) for _ in range(batch)]

    allowed = None
    if vocab > 2 and draw(st.booleans()):
        allowed = torch.rand(vocab, generator=generator) < 0.5
        allowed[1] = True
    processing = LogitsProcessing.create(
        batch,
        guidance_scale=rows([0.5, 1.0, 3.0]) if guided else 1.0,
        temperature=rows([0.0, 0.3, 1.0, 4.0]),
        top_k=rows([0, 1, 2, 50]),
        top_p=rows([0.2, 0.9, 1.0]),
        allowed=allowed,
    )
    now, now_uncond, before, before_uncond = logits(), logits(), logits(), logits()
    last_z = scaled_logits(before, before_uncond if guided else None, processing)
    last = LastForward(before, before_uncond if guided else None, row_statistics(last_z, processing))
    q_row = torch.tensor([[draw(st.sampled_from([Q_NONE, Q_UNIFORM, Q_POINT, *range(window)])) for _ in range(window)] for _ in range(batch)])
    forced = torch.where(torch.rand(batch, window, generator=generator) < 0.2, torch.randint(vocab, (batch, window), generator=generator), -1)
    drafts = torch.randint(vocab, (batch, window), generator=generator)
    arguments = {
        "drafts": torch.where(forced >= 0, forced, drafts),
        "q_row": q_row,
        "last": last,
        "clean": torch.rand(batch, window, generator=generator) < 0.9,
        "forced": forced,
        "remaining": torch.randint(0, window + 2, (batch,), generator=generator),
        "seeds": torch.randint(0, 2**62, (batch,), generator=generator),
        "iteration": torch.randint(0, 1000, (batch,), generator=generator),
        "position": torch.randint(0, 10_000, (batch,), generator=generator),
        "end_id": draw(st.sampled_from([-1, 0, vocab - 1])),
    }
    return now, now_uncond if guided else None, processing, arguments
