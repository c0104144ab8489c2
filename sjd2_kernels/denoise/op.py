"""The public ``denoise`` op: its argument checks, the choice of a back-end, and its registration as ``torch.ops.sjd2.denoise``."""

from __future__ import annotations

import torch

from ..backends import resolve_backend
from ..checks import check_integer, check_shape
from ..compiled import op_backends
from .reference import denoise_reference

__all__ = ["denoise"]

torch.library.define(
    "sjd2::denoise",
    "(Tensor embeds, Tensor weight, Tensor mean, Tensor std, Tensor tokens, Tensor committed, Tensor levels, Tensor next_levels, "
    "Tensor seeds, Tensor position, str backend) -> Tensor",
)


@torch.library.impl("sjd2::denoise", "CompositeExplicitAutograd")
def _denoise(
    embeds: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    tokens: torch.Tensor,
    committed: torch.Tensor,
    levels: torch.Tensor,
    next_levels: torch.Tensor,
    seeds: torch.Tensor,
    position: torch.Tensor,
    backend: str,
) -> torch.Tensor:
    run = denoise_reference
    if backend == "triton":
        from ..fused import denoise as fused  # imports Triton, which need not be installed

        run = fused.denoise_fused
    elif backend == "cpp":
        from ..compiled.denoising import denoise_compiled

        run = denoise_compiled
    return run(
        embeds,
        weight,
        mean,
        std,
        tokens=tokens,
        committed=committed,
        levels=levels,
        next_levels=next_levels,
        seeds=seeds,
        position=position,
    )


@torch.library.register_fake("sjd2::denoise")
def _denoise_fake(embeds: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
    return torch.empty_like(embeds, memory_format=torch.contiguous_format)


def denoise(
    embeds: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    *,
    tokens: torch.Tensor,
    committed: torch.Tensor,
    levels: torch.Tensor,
    next_levels: torch.Tensor,
    seeds: torch.Tensor,
    position: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """The inputs of the next window: shift over the committed tokens, one denoising step per slot, noise for fresh slots (SJD2, 2510.08994).

    In the normalised space ``e = (m − mean) / std`` a slot at level t steps to level t' by ``e' = (t'/t)·e + (1 − t'/t)·ê0`` with ê0 the
    embedding of its token, and a fresh slot is noise ε at level 1. Normalisation is affine and the two shares add up to 1, so the
    same step taken on the embeddings themselves is, with r = t'/t,

        m' = r·m + (1 − r)·weight[token]        m = std·ε + mean for a fresh slot (t = 1)

    which neither divides by ``std`` nor rounds twice. At t' = 0 the slot is clean: bit for bit ``weight[token]``. A slot that was
    clean before stays so, whatever its next level.

    Args:
        embeds: ``[B, W, D]``, what the slots of the last window were fed (the model's dtype, any strides). Slots that are fresh in
            the next window are not looked at, so the first window (``committed = W``) may pass uninitialised memory.
        weight: ``[V, D]``, the embedding of every id.
        mean: ``[D]`` mean over the image ids' embeddings, float32.
        std: ``[D]`` standard deviation, float32.
        tokens: int64 ``[B, W]``, the drafts of the next window.
        committed: int64 ``[B]`` in 0 … W: slot j of the next window is slot ``j + committed`` of the last; slots from ``W − committed`` are fresh.
        levels: float32 ``[B, W]``, t of the slots of the last window.
        next_levels: float32 ``[B, W]``, t' of the slots of the next window, at most their t; 0 is clean.
        seeds: int64 ``[B]``.
        position: int64 ``[B]``, absolute position of slot 0 of the next window. The noise of a position and dimension is always the same.
        backend: as for :func:`sjd2_kernels.verify`.

    Returns:
        ``[B, W, D]`` in the dtype of ``embeds``, contiguous.

    Raises:
        ValueError: a shape does not fit.
        TypeError: an integer argument is not int64, or statistics or levels are not floating.
        RuntimeError: the back-end cannot run on these tensors.

    Example:
        One token was committed: slot 0 has what slot 1 had, half of the way towards its token; slot 1 is fresh, and clean at once.

        >>> import torch
        >>> from sjd2_kernels import denoise
        >>> weight = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        >>> denoise(torch.tensor([[[9.0, 9.0], [1.0, 1.0]]]), weight, weight.mean(0), weight.std(0), tokens=torch.tensor([[1, 0]]),
        ...     committed=torch.tensor([1]), levels=torch.tensor([[0.5, 1.0]]), next_levels=torch.tensor([[0.5, 0.0]]),
        ...     seeds=torch.tensor([0]), position=torch.tensor([1]))
        tensor([[[1.5000, 2.5000],
                 [0.0000, 0.0000]]])
    """
    if embeds.ndim != 3:
        raise ValueError(f"embeds: expected shape (B, W, D), got {tuple(embeds.shape)}")
    batch, window, width = embeds.shape
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(f"weight: expected shape (V, {width}), got {tuple(weight.shape)}")
    for name, tensor, shape in (
        ("mean", mean, (width,)),
        ("std", std, (width,)),
        ("levels", levels, (batch, window)),
        ("next_levels", next_levels, (batch, window)),
    ):
        check_shape(name, tensor, shape)
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    for name, tensor, shape in (
        ("tokens", tokens, (batch, window)),
        ("committed", committed, (batch,)),
        ("seeds", seeds, (batch,)),
        ("position", position, (batch,)),
    ):
        check_shape(name, tensor, shape)
        check_integer(name, tensor)
    chosen = resolve_backend("denoise", backend, op_backends(embeds, weight))
    return torch.ops.sjd2.denoise(embeds, weight, mean, std, tokens, committed, levels, next_levels, seeds, position, chosen)
