"""The public ``sample`` op: its definition, the choice of a back-end, and its registration as ``torch.ops.sjd2.sample``."""

from __future__ import annotations

import torch

from ..backends import resolve_backend
from ..checks import check_integer, check_shape
from ..compiled import op_backends
from ..processing import LogitsProcessing, log_probabilities, row_statistics, scaled_logits
from ..random import Purpose, gumbel_noise, uniforms
from .inverse_cdf import inverse_cdf

__all__ = ["sample"]

torch.library.define(
    "sjd2::sample",
    "(Tensor logits, Tensor? logits_uncond, Tensor guidance_scale, Tensor temperature, Tensor top_k, Tensor top_p, Tensor? allowed, "
    "int max_top_k, bool uses_top_p, bool uses_guidance, Tensor seeds, Tensor iteration, Tensor position, int purpose, str backend) -> Tensor",
)


def sample_reference(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    purpose: Purpose,
) -> torch.Tensor:
    """The definition of :func:`sample`."""
    z = scaled_logits(logits, logits_uncond, processing)
    log_p = log_probabilities(z, row_statistics(z, processing))
    if purpose is Purpose.GUMBEL:
        return (log_p + gumbel_noise(seeds, position, logits.shape[-1], dtype=log_p.dtype)).argmax(-1)
    uniform = uniforms(seeds, purpose, iteration, position, dtype=log_p.dtype)[..., 0]
    return inverse_cdf(log_p.exp(), uniform)


@torch.library.impl("sjd2::sample", "CompositeExplicitAutograd")
def _sample(
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
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    purpose: int,
    backend: str,
) -> torch.Tensor:
    processing = LogitsProcessing(guidance_scale, temperature, top_k, top_p, allowed, max_top_k, uses_top_p, uses_guidance)
    run = sample_reference
    if backend == "triton":
        from ..fused import launch  # imports Triton, which need not be installed

        run = launch.sample_fused
    elif backend == "cpp":
        from ..compiled import sampling  # which itself needs the records of this package

        run = sampling.sample_compiled
    return run(logits, logits_uncond, processing, seeds=seeds, iteration=iteration, position=position, purpose=Purpose(purpose))


@torch.library.register_fake("sjd2::sample")
def _sample_fake(logits: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
    position = named["position"] if "position" in named else arguments[11]
    assert isinstance(position, torch.Tensor)
    return torch.empty_like(position, memory_format=torch.contiguous_format)


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
    backend: str | None = None,
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
        backend: as for :func:`sjd2_kernels.verify`.

    Returns:
        int64 ``[B, W]``.

    Raises:
        ValueError: a shape does not fit.
        TypeError: an integer argument is not int64.
        RuntimeError: the back-end cannot run on these tensors.
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
    batch, window, _ = logits.shape
    slots = (batch, window if window > 1 or position.ndim != 2 else position.shape[1])
    for name, tensor, shape in (("seeds", seeds, (batch,)), ("iteration", iteration, (batch,)), ("position", position, slots)):
        check_shape(name, tensor, shape)
        check_integer(name, tensor)
    check_shape("processing.temperature", processing.temperature, (batch,))
    if logits_uncond is not None:
        check_shape("logits_uncond", logits_uncond, logits.shape)
    elif processing.uses_guidance:
        raise ValueError(f"logits_uncond: expected shape {tuple(logits.shape)}, because guidance_scale is not 1, got None")
    if processing.allowed is not None:
        check_shape("processing.allowed", processing.allowed, logits.shape[-1:])
    if check:
        finite = scaled_logits(logits, logits_uncond, processing).amax(-1).isfinite()
        if not bool(finite.all()):
            row = int((~finite).any(1).long().argmax())
            raise FloatingPointError(f"logits: expected finite values and at least one id that may be drawn, got otherwise in row {row}")
    return torch.ops.sjd2.sample(
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
        seeds,
        iteration,
        position,
        int(purpose),
        resolve_backend("sample", backend, op_backends(logits)),
    )
