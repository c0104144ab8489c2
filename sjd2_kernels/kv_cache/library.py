"""The cache ops as PyTorch operators ``sjd2::kv_…``: with declared mutation, so that ``torch.compile`` and CUDA graphs may contain them.

Every operator takes the name of its back-end as its last argument; the public functions choose it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import checks, native, reference

__all__ = ["register"]

_library = torch.library.Library("sjd2", "FRAGMENT")


def _register(schema: str, definition: Callable[..., None], compiled: Callable[..., bool], check: Callable[..., Any]) -> None:
    """Define ``sjd2::schema`` by its definition, its compiled form and the check of its values, which all see the same arguments."""
    name = schema.partition("(")[0]

    def run(*arguments: Any) -> None:
        *operands, backend = arguments
        if backend == "native":
            if not compiled(*operands):
                check(*operands)
                raise AssertionError(f"{name}: the compiled code refuses arguments that the check accepts")
        else:
            if not _on_gpu(operands):
                check(*operands)
            definition(*operands)

    _library.define(f"{schema[:-1]}, str backend) -> ()")
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sjd2::{name}", lambda *_: None, lib=_library)


def _on_gpu(operands: list[Any]) -> bool:
    return any(isinstance(operand, torch.Tensor) and operand.device.type != "cpu" for operand in operands)


def register() -> None:
    """Make the operators known to PyTorch; called once, when the package is imported."""
    _register(
        "kv_append(Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor keys, Tensor values, Tensor lengths, Tensor? block_table, "
        "Tensor(c!)? overflow)",
        reference.append,
        native.append,
        lambda key_cache, _, keys, __, lengths, block_table, ___: checks.check_append(key_cache, keys.shape[2], lengths, block_table),
    )
    _register(
        "kv_gather(Tensor(a!) keys, Tensor(b!) values, Tensor key_pages, Tensor value_pages, Tensor block_table, Tensor lengths, "
        "Tensor(c!)? overflow)",
        reference.gather,
        native.gather,
        lambda keys, _, key_pages, __, block_table, lengths, ___: checks.check_gather(keys, key_pages, block_table, lengths),
    )
    _register(
        "kv_rollback(Tensor(a!) lengths, Tensor new_lengths, Tensor(b!)[] caches, int window, Tensor(c!)? block_table, Tensor(d!)? free_list, "
        "int page_size, Tensor(e!)? overflow)",
        reference.rollback,
        native.rollback,
        lambda lengths, new_lengths, _, window, block_table, free_list, page_size, __: checks.check_rollback(
            lengths, new_lengths, window, block_table, free_list, page_size
        ),
    )
    _register(
        "kv_compact_rows(Tensor(a!)[] caches, Tensor(b!) lengths, Tensor rows, Tensor(c!)? overflow)",
        reference.compact_rows,
        native.compact_rows,
        lambda caches, lengths, rows, _: checks.check_compact_rows(caches, lengths, rows),
    )
    _register(
        "kv_compact_columns(Tensor(a!)[] caches, Tensor lengths, Tensor columns, Tensor? block_table, Tensor(b!)? overflow)",
        reference.compact_columns,
        native.compact_columns,
        lambda caches, lengths, columns, block_table, _: checks.check_compact_columns(caches, lengths, columns, block_table),
    )
    _register(
        "kv_reserve(Tensor(a!) block_table, Tensor(b!) free_list, Tensor lengths, int count, int page_size, Tensor(c!)? overflow)",
        reference.reserve,
        native.reserve,
        lambda block_table, free_list, lengths, count, page_size, _: checks.check_reserve(block_table, free_list, lengths, count, page_size),
    )
    _register(
        "kv_compact_table(Tensor(a!) block_table, Tensor(b!) free_list, Tensor(c!) lengths, Tensor rows, Tensor(d!)? overflow)",
        reference.compact_table,
        native.compact_table,
        lambda block_table, free_list, _, rows, __: checks.check_compact_table(block_table, free_list, rows),
    )
