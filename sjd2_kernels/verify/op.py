"""The public ``verify`` op: its argument checks, the choice of a back-end, and its registration as ``torch.ops.sjd2.verify``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..backends import resolve_backend
from ..checks import check_integer, check_shape
from ..compiled import op_backends
from ..processing import LogitsProcessing, RowStatistics
from .records import LastForward, Rule, Verification
from .reference import verify_reference

__all__ = ["verify"]

_RULES = tuple(Rule)

torch.library.define(
    "sjd2::verify",
    "(Tensor logits, Tensor? logits_uncond, Tensor guidance_scale, Tensor temperature, Tensor top_k, Tensor top_p, Tensor? allowed, "
    "int max_top_k, bool uses_top_p, bool uses_guidance, str rule, Tensor drafts, Tensor q_row, "
    "Tensor? last_logits, Tensor? last_logits_uncond, Tensor? last_threshold, Tensor? last_cut, Tensor? last_logsumexp, "
    "Tensor clean, Tensor forced, Tensor remaining, Tensor seeds, Tensor iteration, Tensor position, float keep_ratio, int end_id, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("sjd2::verify", "CompositeExplicitAutograd")
def _verify(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    guidance_scale: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    allowed: torch.Tensor | None,
    max_top_k: int,
    uses_top_p: bool,
    uses_guidance: bool,
    rule: str,
    drafts: torch.Tensor,
    q_row: torch.Tensor,
    last_logits: torch.Tensor | None,
    last_logits_uncond: torch.Tensor | None,
    last_threshold: torch.Tensor | None,
    last_cut: torch.Tensor | None,
    last_logsumexp: torch.Tensor | None,
    clean: torch.Tensor,
    forced: torch.Tensor,
    remaining: torch.Tensor,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    keep_ratio: float,
    end_id: int,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    processing = LogitsProcessing(guidance_scale, temperature, top_k, top_p, allowed, max_top_k, uses_top_p, uses_guidance)
    last = None
    if last_logits is not None and last_threshold is not None and last_cut is not None and last_logsumexp is not None:
        last = LastForward(last_logits, last_logits_uncond, RowStatistics(last_threshold, last_cut, last_logsumexp))
    run: Callable[..., tuple] = verify_reference
    if backend == "triton":
        from ..fused import launch  # imports Triton, which need not be installed

        run = launch.verify_fused
    elif backend == "cpp":
        from ..compiled import sampling  # which itself needs the records of this package

        run = sampling.verify_compiled
    tokens, kept, committed, statistics, invalid = run(
        logits,
        logits_uncond,
        processing,
        rule=Rule(rule),
        drafts=drafts,
        q_row=q_row,
        last=last,
        clean=clean,
        forced=forced,
        remaining=remaining,
        seeds=seeds,
        iteration=iteration,
        position=position,
        log_keep_ratio=math.log(keep_ratio) if keep_ratio > 0 else -math.inf,
        end_id=end_id,
    )
    return tokens, kept, committed, *statistics, invalid


@torch.library.register_fake("sjd2::verify")
def _verify_fake(logits: torch.Tensor, *arguments: object, **named: object) -> tuple[torch.Tensor, ...]:
    slots = logits.shape[:2]
    working = torch.float64 if logits.dtype == torch.float64 else torch.float32
    dtypes = (torch.int64, torch.bool, None, working, torch.int64, working, None)
    tokens, kept, _, threshold, cut, logsumexp, _ = (logits.new_empty(slots, dtype=dtype) for dtype in dtypes)
    committed, invalid = logits.new_empty(slots[:1], dtype=torch.int64), logits.new_empty(slots[:1], dtype=torch.bool)
    return tokens, kept, committed, threshold, cut, logsumexp, invalid


def verify(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    rule: Rule,
    drafts: torch.Tensor,
    q_row: torch.Tensor,
    last: LastForward | None,
    clean: torch.Tensor,
    forced: torch.Tensor,
    remaining: torch.Tensor,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    keep_ratio: float = 0.3,
    end_id: int = -1,
    backend: str | None = None,
) -> Verification:
    """Update every slot of every row's window and count the tokens that became final.

    Slot j holds the draft ``x_j`` of absolute position ``position + j`` and is judged by the target distribution ``p_j`` of
    ``logits[:, j]`` (the model's output at the slot before it). Modified rejection sampling keeps ``x_j`` if
    ``u·q_j(x_j) < p_j(x_j)`` and otherwise draws from ``norm(max(0, p_j − q_j))``, or from ``p_j`` where that has no mass.
    Every exact rule leaves each slot with law ``p_j`` given the randomness of earlier positions; the caller must
    therefore use ``p_j`` as that slot's q next time (``q_row`` = j plus ``LastForward``).

    A slot is committed when every slot before it was kept *and* was fed to the model as its clean embedding.

    Args:
        logits: ``[B, W, V]`` conditional (or only) logits; any float dtype, any strides.
        logits_uncond: ``[B, W, V]`` unconditional logits, or ``None``.
        processing: sampling parameters of the B rows, the same for p and q.
        rule: the update rule.
        drafts: int64 ``[B, W]`` in [0, V).
        q_row: int64 ``[B, W]``: where each draft came from. A value ≥ 0 is the slot of ``last`` whose p it was drawn
            from; else ``Q_NONE``, ``Q_UNIFORM`` or ``Q_POINT``. ``Rule.GUMBEL`` does not look at it.
        last: the previous iteration; without it a ``q_row`` ≥ 0 counts as ``Q_NONE``.
        clean: bool ``[B, W]``: the draft was fed as its own embedding (not a noisy one).
        forced: int64 ``[B, W]``: the only legal id of a structural slot, −1 where the slot is free.
        remaining: int64 ``[B]``: tokens still to come, 0 for a finished row.
        seeds: int64 ``[B]``.
        iteration: int64 ``[B]``: the row's own forward count.
        position: int64 ``[B]``: absolute position of slot 0.
        keep_ratio: τ of ``Rule.KEEP_RATIO``.
        end_id: an id after which nothing is committed, −1 for none.
        backend: ``torch`` (the definition), ``triton`` (fused kernels for GPUs), ``cpp`` (C++ for CPUs; neither of the two makes anything of
            size ``[B, W, V]``) or ``None`` for the default: ``triton`` on a GPU and ``cpp`` on a CPU where they can run, ``torch`` for float64
            logits.

    Raises:
        ValueError: an unknown rule or back-end, or a shape that does not fit.
        TypeError: an argument has the wrong dtype.
        RuntimeError: the back-end cannot run on these tensors.

    Example:
        A draft that its own target distribution proposed is always kept.

        >>> import torch
        >>> from sjd2_kernels import LastForward, LogitsProcessing, Rule, verify
        >>> logits = torch.tensor([[[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]])
        >>> window = dict(rule=Rule.COUPLED, clean=torch.ones(1, 2, dtype=torch.bool), forced=torch.full((1, 2), -1),
        ...     remaining=torch.tensor([2]), seeds=torch.tensor([7]), position=torch.tensor([0]))
        >>> first = verify(logits, None, LogitsProcessing.create(1), drafts=torch.tensor([[0, 0]]),
        ...     q_row=torch.tensor([[-1, -1]]), last=None, iteration=torch.tensor([0]), **window)
        >>> again = verify(logits, None, LogitsProcessing.create(1), drafts=first.tokens, q_row=torch.tensor([[0, 1]]),
        ...     last=LastForward(logits, None, first.statistics), iteration=torch.tensor([1]), **window)
        >>> again.kept.tolist(), again.committed.tolist(), bool((again.tokens == first.tokens).all())
        ([[True, True]], [2], True)
    """
    if rule not in _RULES:
        raise ValueError(f"rule: expected one of {', '.join(Rule)}, got {rule!r}")
    if logits.ndim != 3:
        raise ValueError(f"logits: expected shape (B, W, V), got {tuple(logits.shape)}")
    batch, window, _ = logits.shape
    for name, tensor, shape in (
        ("drafts", drafts, (batch, window)),
        ("q_row", q_row, (batch, window)),
        ("forced", forced, (batch, window)),
        ("remaining", remaining, (batch,)),
        ("seeds", seeds, (batch,)),
        ("iteration", iteration, (batch,)),
        ("position", position, (batch,)),
    ):
        check_shape(name, tensor, shape)
        check_integer(name, tensor)
    check_shape("clean", clean, (batch, window))
    if clean.dtype != torch.bool:
        raise TypeError(f"clean: expected dtype torch.bool, got {clean.dtype}")
    check_shape("processing.temperature", processing.temperature, (batch,))
    if logits_uncond is not None:
        check_shape("logits_uncond", logits_uncond, logits.shape)
    elif processing.uses_guidance:
        raise ValueError(f"logits_uncond: expected shape {tuple(logits.shape)}, because guidance_scale is not 1, got None")
    if processing.allowed is not None:
        check_shape("processing.allowed", processing.allowed, logits.shape[-1:])
    if last is not None:
        check_shape("last.logits", last.logits, logits.shape)
        if last.logits_uncond is not None:
            check_shape("last.logits_uncond", last.logits_uncond, logits.shape)
        elif processing.uses_guidance:
            raise ValueError(f"last.logits_uncond: expected shape {tuple(logits.shape)}, because guidance_scale is not 1, got None")
    chosen = resolve_backend("verify", backend, op_backends(logits, *(() if last is None else (last.logits,))))
    statistics = (None, None, None) if last is None else tuple(last.statistics)
    tokens, kept, committed, threshold, cut, logsumexp, invalid = torch.ops.sjd2.verify(
        logits,
        logits_uncond,
        processing.guidance_scale,
        processing.temperature,
        processing.top_k,
        processing.top_p,
        processing.allowed,
        processing.max_top_k,
        processing.uses_top_p,
        processing.uses_guidance,
        rule.value if isinstance(rule, Rule) else rule,  # calling Rule is more than PyTorch 2.11 compiles
        drafts,
        q_row,
        None if last is None else last.logits,
        None if last is None else last.logits_uncond,
        *statistics,
        clean,
        forced,
        remaining,
        seeds,
        iteration,
        position,
        keep_ratio,
        end_id,
        chosen,
    )
    return Verification(tokens, kept, committed, RowStatistics(threshold, cut, logsumexp), invalid)
