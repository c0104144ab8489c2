"""``verify`` and ``sample`` in C++, for tensors on a CPU: one pass over each slot's logits, and after it nothing but the ids that processing left.

They draw the tokens of the definition from the same random words, but where a decision hangs on the last bits of a sum. ``csrc/sampling.h`` is
their interface.
"""

from __future__ import annotations

import torch

from ..checks import check_shape
from ..processing import LogitsProcessing, RowStatistics
from ..random import Purpose
from ..verify.records import LastForward, Rule, Verification
from . import module
from .tensors import Addresses, described

__all__ = ["sample_compiled", "verify_compiled"]

_RULES = {Rule.FRESH: 0, Rule.COUPLED: 1, Rule.GUMBEL_TAIL: 2, Rule.GUMBEL: 3, Rule.KEEP_RATIO: 4}


def _logits(logits: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if logits is None else described(logits)


def _check_vector(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Nothing but this stands between a wrong tensor and memory that is not its own."""
    check_shape(name, tensor, shape)
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected {dtype} on the CPU, got {tensor.dtype} on {tensor.device}")


class _Addresses(Addresses):
    """And of the records of sampling, whose fields are checked."""

    def processing(self, processing: LogitsProcessing, rows: int) -> tuple[int, ...]:
        kinds = {"guidance_scale": torch.float32, "temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32}
        for name, dtype in kinds.items():
            _check_vector(f"processing.{name}", getattr(processing, name), (rows,), dtype)
        return self(processing.guidance_scale, processing.temperature, processing.top_k, processing.top_p, processing.allowed)

    def statistics(self, statistics: RowStatistics, slots: torch.Size) -> tuple[int, ...]:
        for name, dtype in {"threshold": torch.float32, "cut": torch.int64, "logsumexp": torch.float32}.items():
            _check_vector(f"last.statistics.{name}", getattr(statistics, name), slots, dtype)
        return self(*statistics)


def verify_compiled(
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
    log_keep_ratio: float,
    end_id: int,
) -> Verification:
    """See :func:`sjd2_kernels.verify`; ``log_keep_ratio`` is log τ.

    Raises:
        ValueError: a draft that is no id, or a ``q_row`` that is no slot.
        TypeError: statistics or parameters of another kind than ``verify`` and ``LogitsProcessing.create`` make.
    """
    assert module is not None
    slots, rows = drafts.shape, drafts.shape[:1]
    statistics = RowStatistics(torch.empty(slots), torch.empty(slots, dtype=torch.int64), torch.empty(slots))
    result = Verification(
        torch.empty(slots, dtype=torch.int64),
        torch.empty(slots, dtype=torch.bool),
        torch.empty(rows, dtype=torch.int64),
        statistics,
        torch.empty(rows, dtype=torch.bool),
    )
    addresses = _Addresses()
    bad_row = module.cpu_verify(
        _logits(logits),
        _logits(logits_uncond),
        None if last is None else _logits(last.logits),
        None if last is None else _logits(last.logits_uncond),
        None if last is None else addresses.statistics(last.statistics, slots),
        addresses.processing(processing, len(position)),
        addresses(drafts, q_row, clean, forced, remaining, seeds, iteration, position),
        _RULES[rule],
        log_keep_ratio,
        end_id,
        addresses(result.tokens, result.kept, result.committed, *statistics, result.invalid),
        torch.get_num_threads(),
    )
    if bad_row >= 0:
        legal = f"ids in [0, {logits.shape[-1]}), and slots below {slots[1]} or Q_NONE, Q_UNIFORM, Q_POINT"
        raise ValueError(f"drafts, q_row: expected {legal}, got otherwise in row {bad_row}")
    return result


def sample_compiled(
    logits: torch.Tensor,
    logits_uncond: torch.Tensor | None,
    processing: LogitsProcessing,
    *,
    seeds: torch.Tensor,
    iteration: torch.Tensor,
    position: torch.Tensor,
    purpose: Purpose,
) -> torch.Tensor:
    """See :func:`sjd2_kernels.sample`."""
    assert module is not None
    tokens = torch.empty(position.shape, dtype=torch.int64)
    addresses = _Addresses()
    module.cpu_sample(
        _logits(logits),
        _logits(logits_uncond),
        addresses.processing(processing, len(position)),
        *addresses(seeds, iteration, position),
        position.shape[1],
        int(purpose),
        *addresses(tokens),
        torch.get_num_threads(),
    )
    return tokens
