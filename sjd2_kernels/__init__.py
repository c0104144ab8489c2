"""sjd2-kernels: the ops of speculative Jacobi decoding. They know tensors, and nothing of models."""

from .attention import window_attention
from .denoise import denoise
from .kv_cache import (
    kv_append,
    kv_compact,
    kv_compact_columns,
    kv_rollback,
    paged_kv_append,
    paged_kv_compact,
    paged_kv_compact_columns,
    paged_kv_gather,
    paged_kv_reserve,
    paged_kv_rollback,
    paged_kv_tables,
)
from .processing import LogitsProcessing, RowStatistics
from .random import Purpose
from .sampling import sample
from .verify import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, Rule, Verification, verify

__all__ = [
    "Q_NONE",
    "Q_POINT",
    "Q_UNIFORM",
    "LastForward",
    "LogitsProcessing",
    "Purpose",
    "RowStatistics",
    "Rule",
    "Verification",
    "denoise",
    "kv_append",
    "kv_compact",
    "kv_compact_columns",
    "kv_rollback",
    "paged_kv_append",
    "paged_kv_compact",
    "paged_kv_compact_columns",
    "paged_kv_gather",
    "paged_kv_reserve",
    "paged_kv_rollback",
    "paged_kv_tables",
    "sample",
    "verify",
    "window_attention",
]
