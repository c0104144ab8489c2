"""The public ``verify`` op: its argument checks and the choice of a back-end."""

from __future__ import annotations

import torch

from ..checks import check_integer, check_shape
from ..processing import LogitsProcessing
from .records import LastForward, Rule, Verification
from .reference import verify_reference

__all__ = ["verify"]


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

    Raises:
        ValueError: an unknown rule, or a shape that does not fit.
        TypeError: an argument has the wrong dtype.

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
    if rule not in list(Rule):
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
    if last is not None:
        check_shape("last.logits", last.logits, logits.shape)
    return verify_reference(
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
        keep_ratio=keep_ratio,
        end_id=end_id,
    )
