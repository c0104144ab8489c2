"""Calls of ``verify`` and ``sample`` on a back-end and on the definition, and what may differ between them."""

from __future__ import annotations

import torch

from sjd2_kernels import LastForward, LogitsProcessing, Rule, Verification, sample, verify
from sjd2_kernels.processing import row_statistics, scaled_logits

from .margins import TOLERANCE, nucleus_margin, sample_margin, verify_margin


def to(value, device):
    """Tensors, and records of tensors, moved to ``device`` with their strides."""
    if isinstance(value, torch.Tensor):
        if value.device == torch.device(device):
            return value
        # `Tensor.to` would make what is not dense contiguous.
        storage = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).to(device).untyped_storage()
        return torch.empty(0, dtype=value.dtype, device=device).set_(storage, value.storage_offset(), value.shape, value.stride())
    if isinstance(value, LastForward):
        return LastForward(
            to(value.logits, device), to(value.logits_uncond, device), type(value.statistics)(*(to(v, device) for v in value.statistics))
        )
    if isinstance(value, LogitsProcessing):
        return LogitsProcessing(**{name: to(field, device) for name, field in vars(value).items()})
    return value


def random_window(
    batch: int,
    window: int,
    vocab: int,
    *,
    dtype=torch.float32,
    seed=0,
    guided=False,
    has_last=True,
    rounded=False,
    peak=2.0,
    allowed=None,
    **settings,
):
    """(logits, uncond, processing, arguments) of a random call; logits are every second element of a larger tensor."""
    generator = torch.Generator().manual_seed(seed)

    def logits():
        values = torch.randn(batch, window, 2 * vocab, generator=generator) * peak
        return (values.round() if rounded else values).to(dtype)[..., ::2]

    processing = LogitsProcessing.create(batch, guidance_scale=3.0 if guided else 1.0, allowed=allowed, **settings)
    now, before = logits(), logits()
    now_uncond, before_uncond = (logits(), logits()) if guided else (None, None)
    # Half of the slots see what they saw before, up to a small change: the state in which drafts survive.
    settled = torch.rand(batch, window, 1, generator=generator) < 0.5
    before = torch.where(settled, now + 0.1 * before, before)
    statistics = row_statistics(scaled_logits(before, before_uncond, processing), processing)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    slot = torch.arange(window).expand(batch, window)
    drafts = torch.where(settled[..., 0], now.float().argmax(-1), integers(0, vocab, batch, window))
    arguments = {
        "drafts": drafts,
        "q_row": torch.where(torch.rand(batch, window, generator=generator) < 0.6, slot, integers(-3, window, batch, window)),
        "last": LastForward(before, before_uncond, statistics) if has_last else None,
        "clean": torch.rand(batch, window, generator=generator) < 0.9,
        "forced": torch.where(torch.rand(batch, window, generator=generator) < 0.1, integers(0, vocab, batch, window), -1),
        "remaining": integers(0, window + 2, batch),
        "seeds": integers(-(2**62), 2**62, batch),
        "iteration": integers(0, 1000, batch),
        "position": integers(0, 10_000, batch),
        "end_id": 0,
    }
    return now, now_uncond, processing, arguments


def compare_verify(case, rule: Rule, device, *, backend="triton", excused_share: float | None = 0.01) -> Verification:
    """Run the definition and ``backend``; every difference must be a matter of rounding, and those few. Returns the back-end's result."""
    logits, uncond, processing, arguments = case
    wanted = verify(logits, uncond, processing, rule=rule, backend="torch", **arguments)
    moved = [to(value, device) for value in case[:3]]
    got = verify(*moved, rule=rule, backend=backend, **{name: to(value, device) for name, value in arguments.items()})
    got = Verification(
        got.tokens.cpu(), got.kept.cpu(), got.committed.cpu(), type(got.statistics)(*(v.cpu() for v in got.statistics)), got.invalid.cpu()
    )
    near_nucleus = nucleus_margin(scaled_logits(logits, uncond, processing).double(), processing) < TOLERANCE
    for name in ("threshold", "cut"):
        differs = getattr(got.statistics, name) != getattr(wanted.statistics, name)
        assert not (differs & ~near_nucleus).any(), name
    assert not got.statistics.threshold.isnan().any(), "nothing is above a NaN"
    close = torch.isclose(got.statistics.logsumexp, wanted.statistics.logsumexp, rtol=1e-6, atol=1e-5)
    assert (close | near_nucleus).all(), "logsumexp"
    margin = verify_margin(logits, uncond, processing, rule=rule, **arguments)
    differs = (got.tokens != wanted.tokens) | (got.kept != wanted.kept)
    assert not (differs & ~(margin < TOLERANCE)).any(), f"tokens differ at margins {margin[differs].tolist()}"
    if excused_share is not None:  # a call with few slots may have one of the rare ones
        assert int(differs.sum()) <= max(1, excused_share * differs.numel()), f"{int(differs.sum())} of {differs.numel()} slots differ"
    same = ~differs.any(1)
    assert torch.equal(got.committed[same], wanted.committed[same])
    assert torch.equal(got.invalid, wanted.invalid)
    return got


def compare_sample(logits, uncond, processing, arguments, device, *, backend="triton", excused: int = 1) -> torch.Tensor:
    """Run the definition and ``backend``; ids may differ in ``excused`` slots, where rounding decides. Returns the back-end's ids."""
    wanted = sample(logits, uncond, processing, backend="torch", **arguments)
    moved = [to(value, device) for value in (logits, uncond, processing)]
    got = sample(*moved, backend=backend, **{name: to(value, device) for name, value in arguments.items()}).cpu()
    differs = got != wanted
    margin = sample_margin(logits, uncond, processing, **arguments).expand_as(differs)
    assert not (differs & ~(margin < TOLERANCE)).any(), f"ids differ at margins {margin[differs].tolist()}"
    assert int(differs.sum()) <= excused
    return got


def some_slots(batch: int, window: int) -> dict:
    """Seeds, iterations and positions of ``sample``."""
    return {
        "seeds": torch.arange(batch) * 2**40 - 1,
        "iteration": torch.arange(batch) + 3,
        "position": torch.arange(batch)[:, None] * 100 + torch.arange(window),
    }
