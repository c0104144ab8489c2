"""From raw logits to the target distribution: guidance, allowed ids, temperature, top-k, top-p, softmax, in that order.

The result is what plain autoregressive sampling would draw from. It is described by four numbers per row (*statistics*), so
that a distribution can be rebuilt later from the logits it came from without ever being stored:

    z = (u + s·(c − u)) / T            kept where z > threshold, or z == threshold and id <= cut
    log p = z − logsumexp              over the kept ids, −inf elsewhere
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .checks import check_shape

__all__ = ["LogitsProcessing", "RowStatistics", "log_probabilities", "row_statistics", "scaled_logits"]


class RowStatistics(NamedTuple):
    """What rebuilds a target distribution from its raw logits; each tensor is ``[B, W]``.

    ``threshold`` and ``logsumexp`` have the working dtype, ``cut`` is int64: of the ids tied at the threshold those up to
    ``cut`` are kept.
    """

    threshold: torch.Tensor
    cut: torch.Tensor
    logsumexp: torch.Tensor


@dataclass(frozen=True)
class LogitsProcessing:
    """Sampling parameters, one value per row; build it with :meth:`create`.

    ``guidance_scale``, ``temperature`` and ``top_p`` are float32 ``[B]``, ``top_k`` is int64 ``[B]``; ``allowed`` is bool
    ``[V]`` or ``None``. ``max_top_k`` (0: no row uses top-k), ``uses_top_p`` and ``uses_guidance`` are known on the host, so that nothing has to
    be read back from the device to decide what to compute.
    """

    guidance_scale: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    allowed: torch.Tensor | None
    max_top_k: int
    uses_top_p: bool
    uses_guidance: bool

    @classmethod
    def create(
        cls,
        batch_size: int,
        *,
        guidance_scale: float | Sequence[float] = 1.0,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        allowed: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> LogitsProcessing:
        """Check the parameters and put them on ``device``; a number applies to every row.

        Args:
            batch_size: B.
            guidance_scale: s of classifier-free guidance; 1 leaves the conditional logits as they are.
            temperature: T ≥ 0; 0 (and what float32 cannot divide by) is greedy: the highest logit, lowest id among equals.
            top_k: keep the k highest logits (lowest ids among equals); 0 keeps all.
            top_p: keep the fewest ids whose probability reaches p, in (0, 1]; 1 keeps all.
            allowed: bool ``[V]``, ids that may be drawn.

        Raises:
            ValueError: a value is out of its range, or a list has not ``batch_size`` values.
        """

        def rows(name: str, value: float | Sequence[float], legal: str, test) -> list[float]:
            values, times = (list(value), 1) if isinstance(value, Sequence) and not isinstance(value, str) else ([value], batch_size)
            if len(values) * times != batch_size:
                raise ValueError(f"{name}: expected one value or {batch_size} (one per row), got {len(values)}")
            for one in values:
                if not isinstance(one, (numbers.Real, torch.Tensor)) or not test(one):
                    raise ValueError(f"{name}: expected {legal}, got {one!r}")
            return values * times

        finite = float("inf")
        scales = rows("guidance_scale", guidance_scale, "a number between -1e6 and 1e6", lambda x: -1e6 <= x <= 1e6)
        temperatures = rows("temperature", temperature, "a finite number >= 0", lambda x: 0 <= x < finite)
        ks = rows("top_k", top_k, "a whole number >= 0", lambda x: not isinstance(x, bool) and 0 <= x < 2**63 and x == int(x))
        ps = rows("top_p", top_p, "a number in (0, 1]", lambda x: 0 < x <= 1)
        if allowed is not None and (allowed.dtype != torch.bool or allowed.ndim != 1 or not bool(allowed.any())):
            raise ValueError(f"allowed: expected bool [V] with at least one id, got {allowed.dtype} {tuple(allowed.shape)}")
        # Greedy decoding is the arg-max: temperature 0 is top-k 1 at temperature 1.
        temperatures = [0 if t < 1e-20 else t for t in temperatures]
        ks = [1 if t == 0 else int(k) for k, t in zip(ks, temperatures, strict=True)]
        temperatures = [t or 1.0 for t in temperatures]
        return cls(
            guidance_scale=torch.tensor(scales, dtype=torch.float32, device=device),
            temperature=torch.tensor(temperatures, dtype=torch.float32, device=device),
            top_k=torch.tensor(ks, dtype=torch.int64, device=device),
            top_p=torch.tensor(ps, dtype=torch.float32, device=device),
            allowed=None if allowed is None else allowed.to(device),
            max_top_k=max(map(int, ks), default=0),
            uses_top_p=any(p < 1 for p in ps),
            uses_guidance=any(scale != 1 for scale in scales),
        )

    def select(self, rows: torch.Tensor) -> LogitsProcessing:
        """The parameters of ``rows`` (int64 indices), for a batch from which finished rows were taken out."""
        per_row = ("guidance_scale", "temperature", "top_k", "top_p")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_row})


def scaled_logits(logits: torch.Tensor, logits_uncond: torch.Tensor | None, processing: LogitsProcessing) -> torch.Tensor:
    """``z`` of the module's formula, ``[B, W, V]``, with −inf at ids that are not allowed.

    Float64 logits stay float64; every other dtype is computed in float32.

    Raises:
        ValueError: guidance without unconditional logits, or a shape that does not fit.
    """
    if logits_uncond is None and processing.uses_guidance:
        raise ValueError(f"logits_uncond: expected shape {tuple(logits.shape)}, because guidance_scale is not 1, got None")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = logits.to(dtype)
    if logits_uncond is not None:
        check_shape("logits_uncond", logits_uncond, logits.shape)
        uncond = logits_uncond.to(dtype)
        scale = processing.guidance_scale.to(dtype)[:, None, None]
        guided = uncond + scale * (z - uncond)
        # An id that either branch masks stays masked (the formula would give NaN or +inf; the minimum lets a real NaN
        # through), and at scale 1 the unconditional branch must not matter at all.
        masked = (z == -torch.inf) | (uncond == -torch.inf)
        z = torch.where(scale == 1, z, torch.where(masked, torch.minimum(z, uncond), guided))
    if processing.allowed is not None:
        check_shape("processing.allowed", processing.allowed, logits.shape[-1:])
        z = z.masked_fill(~processing.allowed, -torch.inf)
    return z / processing.temperature.to(dtype)[:, None, None]


def _top_k_border(z: torch.Tensor, top_k: torch.Tensor, max_top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Threshold and cut ``[B, W]`` that keep exactly ``top_k`` ids per row (all of them where it is 0)."""
    vocab = z.shape[-1]
    k = torch.where(top_k == 0, vocab, top_k.clamp(max=vocab))[:, None]
    largest = z.topk(min(max_top_k, vocab), dim=-1).values
    threshold = largest.gather(-1, (k.clamp(max=largest.shape[-1]) - 1).expand(z.shape[:2])[..., None]).squeeze(-1)
    tied = z == threshold[..., None]
    wanted = k - (z > threshold[..., None]).sum(-1)  # how many of the tied ids survive, at least one
    cut = (tied.cumsum(-1) < wanted[..., None]).sum(-1)  # the index at which the running count reaches `wanted`
    everything = k >= vocab
    return threshold.masked_fill(everything, -torch.inf), cut.masked_fill(everything, vocab)


def _top_p_border(z: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Threshold and cut ``[B, W]`` of the fewest ids, by falling z and rising id, whose probability reaches ``top_p``."""
    ordered, ids = z.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    kept = (before < top_p.to(z.dtype)[:, None, None]) & (ordered > -torch.inf)
    last = kept.sum(-1, keepdim=True).clamp(min=1) - 1
    return ordered.gather(-1, last).squeeze(-1), ids.gather(-1, last).squeeze(-1)


def _kept(z: torch.Tensor, threshold: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(z.shape[-1], device=z.device)
    return (z > threshold[..., None]) | ((z == threshold[..., None]) & (ids <= cut[..., None]))


def row_statistics(z: torch.Tensor, processing: LogitsProcessing) -> RowStatistics:
    """The statistics of scaled logits ``[B, W, V]``; top-p counts probability among the ids that top-k left."""
    rows = z.shape[:2]
    threshold = z.new_full(rows, -torch.inf)
    cut = torch.full(rows, z.shape[-1], dtype=torch.int64, device=z.device)
    kept_z = z
    if processing.max_top_k:
        threshold, cut = _top_k_border(z, processing.top_k, processing.max_top_k)
        kept_z = z.masked_fill(~_kept(z, threshold, cut), -torch.inf)
    if processing.uses_top_p:
        p_threshold, p_cut = _top_p_border(kept_z, processing.top_p)
        applies = (processing.top_p < 1)[:, None].expand(rows)
        threshold, cut = torch.where(applies, p_threshold, threshold), torch.where(applies, p_cut, cut)
        kept_z = z.masked_fill(~_kept(z, threshold, cut), -torch.inf)
    return RowStatistics(threshold, cut, kept_z.logsumexp(-1))


def log_probabilities(z: torch.Tensor, statistics: RowStatistics) -> torch.Tensor:
    """Log of the target distribution ``[B, W, V]``: −inf at ids that processing removed."""
    kept = _kept(z, statistics.threshold, statistics.cut)
    return (z - statistics.logsumexp[..., None]).masked_fill(~kept, -torch.inf)
