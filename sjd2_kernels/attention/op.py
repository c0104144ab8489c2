"""The public ``window_attention`` op: its argument checks, the choice of a back-end, and its registration as ``torch.ops.sjd2.window_attention``."""

from __future__ import annotations

import torch

from ..backends import resolve_backend
from ..checks import check_integer, check_shape
from ..fused import fused_backends, triton_obstacle
from .reference import window_attention_reference

__all__ = ["attention_obstacle", "window_attention"]

#: Widths of a head that a kernel's tile has room for.
WIDEST_HEAD = 256

torch.library.define(
    "sjd2::window_attention",
    "(Tensor query, Tensor keys, Tensor values, Tensor lengths, Tensor? levels, Tensor? block_table, float scale, str backend) -> Tensor",
)


@torch.library.impl("sjd2::window_attention", "CompositeExplicitAutograd")
def _window_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    levels: torch.Tensor | None,
    block_table: torch.Tensor | None,
    scale: float,
    backend: str,
) -> torch.Tensor:
    if backend == "triton":
        from ..fused.attention import window_attention_fused  # imports Triton, which need not be installed

        return window_attention_fused(query, keys, values, lengths, levels, block_table, scale)
    return window_attention_reference(query, keys, values, lengths, levels, block_table, scale)


@torch.library.register_fake("sjd2::window_attention")
def _window_attention_fake(query: torch.Tensor, *arguments: object) -> torch.Tensor:
    rows, heads, inputs, width = query.shape
    return query.new_empty(rows, inputs, heads, width)


def _span(tensor: torch.Tensor) -> int:
    """Elements of ``[·, H, S, D]`` from the first of a row, or of a page, to behind its last."""
    _, heads, columns, width = tensor.shape
    _, of_head, of_column, of_element = tensor.stride()
    return max(heads - 1, 0) * of_head + columns * of_column + max(width - 1, 0) * of_element


def attention_obstacle(query: torch.Tensor, *caches: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot run; ``None`` if they can. ``caches`` are the keys and the values."""
    if query.shape[3] > WIDEST_HEAD:
        return f"heads are at most {WIDEST_HEAD} wide there, and these are {query.shape[3]}"
    # Within a row, or a page, elements are counted in 32 bits.
    for name, span in (("inputs", _span(query)), *(("columns", _span(cache)) for cache in caches)):
        if span >= 2**31:
            return f"the {name} of a row span fewer than 2^31 elements there, and these {span}"
    return triton_obstacle(query, *caches)


def window_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    levels: torch.Tensor | None = None,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Attention of every row's next T inputs over its own valid columns, the inputs before each, and itself.

    The columns of the T inputs have been appended already (:func:`kv_append`): they lie at ``lengths[r] … lengths[r] + T − 1``. What lies behind
    them is not read by the kernels, nor does it matter what is there (the definition wants it finite).

    Args:
        query: ``[R, H, T, D]``, any strides.
        keys, values: ``[R, G, S, D]`` with H a multiple of G (grouped heads), any strides; S is at least every ``lengths[r] + T``. Or, with a
            ``block_table``, pages ``[N, G, P, D]``.
        lengths: int64 ``[R]``, valid columns before the T inputs.
        levels: int64 ``[R, W]`` with W ≤ T: the inputs from W on are timestep tokens of the levels 1, 2, … (SJD2, 2510.08994). Each of those sees
            only itself; input i of the window sees, besides the columns before it, the timestep token of ``levels[r, i]``, and none at 0.
        block_table: int64 ``[R, M]``, the pages of each row's columns, as :func:`paged_kv_tables` describes them: nothing is gathered by the kernels.
        scale: of the scores; default: ``D ** -0.5``.
        backend: as for :func:`sjd2_kernels.verify`.

    Returns:
        ``[R, T, H, D]`` in the dtype of ``query``, contiguous.

    Raises:
        ValueError: a shape does not fit.
        TypeError: ``lengths`` or ``levels`` are not int64, or the dtypes of query, keys and values differ.
        RuntimeError: the back-end cannot run on these tensors.

    Example:
        A row with one valid column, and one input: it sees two columns.

        >>> import torch
        >>> from sjd2_kernels import window_attention
        >>> values = torch.tensor([1.0, 3.0, 100.0]).view(1, 1, 3, 1)
        >>> window_attention(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 3, 1), values, torch.tensor([1]))
        tensor([[[[2.]]]])
    """
    if query.ndim != 4:
        raise ValueError(f"query: expected shape (R, H, T, D), got {tuple(query.shape)}")
    rows, heads, inputs, width = query.shape
    expected = f"({rows}, G, S, {width})" if block_table is None else f"(N, G, P, {width})"
    if keys.ndim != 4 or keys.shape[3] != width or (block_table is None and keys.shape[0] != rows):
        raise ValueError(f"keys: expected shape {expected}, got {tuple(keys.shape)}")
    if keys.shape[1] == 0 or heads % keys.shape[1]:
        raise ValueError(f"keys: expected a number of heads that divides query's {heads}, got {keys.shape[1]}")
    check_shape("values", values, keys.shape)
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name}: expected query's dtype {query.dtype}, got {tensor.dtype}")
    columns = keys.shape[2]
    if block_table is not None:
        if block_table.ndim != 2 or block_table.shape[0] != rows:
            raise ValueError(f"block_table: expected shape ({rows}, M), got {tuple(block_table.shape)}")
        check_integer("block_table", block_table)
        columns *= block_table.shape[1]
    if columns < inputs:
        raise ValueError(f"keys: expected columns for the {inputs} inputs at least, got {columns}")
    check_shape("lengths", lengths, (rows,))
    check_integer("lengths", lengths)
    if levels is not None:
        if levels.ndim != 2 or levels.shape[0] != rows or levels.shape[1] > inputs:
            raise ValueError(f"levels: expected shape ({rows}, W) with W <= {inputs}, got {tuple(levels.shape)}")
        check_integer("levels", levels)
    chosen = resolve_backend("window_attention", backend, fused_backends(query, keys, obstacle=attention_obstacle(query, keys, values)))
    return torch.ops.sjd2.window_attention(query, keys, values, lengths, levels, block_table, width**-0.5 if scale is None else scale, chosen)
