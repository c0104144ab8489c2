"""The public ``sample`` op."""

from __future__ import annotations

import torch

from ..checks import check_integer, check_shape
from ..processing import LogitsProcessing, log_probabilities, row_statistics, scaled_logits
from ..random import Purpose, gumbel_noise, uniforms
from .inverse_cdf import inverse_cdf

__all__ = ["sample"]


def sample(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    purpose: Purpose = Purpose.DRAFT,
    check: bool = False,
) -> torch.Tensor:
    """Draw one id for every slot from the target distribution of its logits.

    With ``purpose=Purpose.GUMBEL`` the draw is ``argmax(log p + G)`` with the frozen Gumbel noise of (seed, position, id);
    any other purpose draws by inverse CDF with one uniform of that purpose.

    Args:
        logits: ``[B, W, V]`` conditional (or only) logits; any float dtype, any strides. ``[B, 1, V]`` serves all W slots.
        logits_uncond: unconditional logits of the same shape, or ``None``.
        processing: sampling parameters of the B rows.
        seeds: int64 ``[B]``.
        iteration: int64 ``[B]``, the row's forward count; ignored by the frozen noise.
        position: int64 ``[B, W]``, absolute position of the token drawn in each slot.
        purpose: which random words to use.
        check: look at the logits first, which makes the host wait for the device. Without it the id drawn from NaN, +inf or
            nothing but −inf is meaningless (but in range).

    Returns:
        int64 ``[B, W]``.

    Raises:
        ValueError: a shape does not fit.
        TypeError: an integer argument is not int64.
        FloatingPointError: with ``check``, a slot whose logits hold NaN or +inf or allow no id.

    Example:
        >>> import torch
        >>> from sjd2_kernels import LogitsProcessing, sample
        >>> logits = torch.tensor([[[0.0, 3.0, 1.0]]])
        >>> greedy = LogitsProcessing.create(1, temperature=0.0)
        >>> zeros = torch.zeros(1, dtype=torch.int64)
        >>> sample(logits, None, greedy, seeds=zeros, iteration=zeros, position=zeros[:, None])
        tensor([[1]])
    """
    if logits.ndim != 3:
        raise ValueError(f"logits: expected shape (B, W, V), got {tuple(logits.shape)}")
    batch, window, vocab = logits.shape
    slots = (batch, window if window > 1 or position.ndim != 2 else position.shape[1])
    for name, tensor, shape in (("seeds", seeds, (batch,)), ("iteration", iteration, (batch,)), ("position", position, slots)):
        check_shape(name, tensor, shape)
        check_integer(name, tensor)
    z = scaled_logits(logits, logits_uncond, processing)
    if check and not bool(z.amax(-1).isfinite().all()):
        row = int((~z.amax(-1).isfinite()).any(1).long().argmax())
        raise FloatingPointError(f"logits: expected finite values and at least one id that may be drawn, got otherwise in row {row}")
    log_p = log_probabilities(z, row_statistics(z, processing))
    if purpose is Purpose.GUMBEL:
        return (log_p + gumbel_noise(seeds, position, vocab, dtype=log_p.dtype)).argmax(-1)
    uniform = uniforms(seeds, purpose, iteration, position, dtype=log_p.dtype)[..., 0]
    return inverse_cdf(log_p.exp(), uniform)
