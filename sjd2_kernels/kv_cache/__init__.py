"""KV-cache ops: rows with lengths of their own, in dense buffers or in pages."""

from .dense import kv_append, kv_compact, kv_compact_columns, kv_rollback
from .paged import (
    paged_kv_append,
    paged_kv_compact,
    paged_kv_compact_columns,
    paged_kv_gather,
    paged_kv_reserve,
    paged_kv_rollback,
    paged_kv_tables,
)

__all__ = [
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
]
