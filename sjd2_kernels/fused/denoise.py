"""Kernel: shift, denoising step, fresh noise and clean copies of a window of embeddings, in one pass.

Bytes per element of the window, in a model dtype of 2 B:

    noisy slot                 6 (its last input, its token's embedding, its next input)
    clean slot                 4 (its last input is not read)
    fresh slot                 2 (its next input), and 8 of the statistics, which stay in cache

Nothing is reduced, so nothing depends on an order. Not measured on a GPU.
"""

import torch
import triton
import triton.language as tl

from . import INTERPRETED
from .logits import launch_options, philox, uniform_from_bits

__all__ = ["denoise_fused"]

NOISE = tl.constexpr(3)  # Purpose.NOISE


@triton.jit
def cos_sin_of_turns(turns):
    """cos 2πv and sin 2πv of v in (0, 1), to about 2e-7.

    The nearest quarter turn is taken off before anything is multiplied by π, which is exact; what is left lies within an eighth of a turn, where
    Taylor's series needs a few terms. The library functions reduce any argument, with an array in local memory.
    """
    quarter = tl.floor(4.0 * turns + 0.5)
    angle = 6.283185307179586 * (turns - 0.25 * quarter)
    square = angle * angle
    sine = angle * (1.0 + square * (-1.0 / 6 + square * (1.0 / 120 + square * (-1.0 / 5040 + square * (1.0 / 362880)))))
    cosine = 1.0 + square * (-0.5 + square * (1.0 / 24 + square * (-1.0 / 720 + square * (1.0 / 40320))))
    quarter = quarter.to(tl.int32)
    swapped = (quarter & 1) == 1
    sine, cosine = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return tl.where(((quarter + 1) & 2) == 2, -cosine, cosine), tl.where((quarter & 2) == 2, -sine, sine)


@triton.jit
def denoise_kernel(
    embeds_ptr,  # [B, W, D]
    weight_ptr,  # [V, D]
    mean_ptr,  # [D], like std
    std_ptr,
    tokens_ptr,  # [B, W], like levels and next_levels
    committed_ptr,  # [B], like seeds and position
    levels_ptr,
    next_levels_ptr,
    seeds_ptr,
    position_ptr,
    out_ptr,  # [B, W, D], written
    rows,
    W,
    D,
    stride_embeds_b,
    stride_embeds_w,
    stride_embeds_d,
    stride_weight_v,
    stride_weight_d,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile ``[ROWS, BLOCK_D]`` of slots by dimensions per program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    b, w = row // W, row % W
    source = w + tl.load(committed_ptr + b, mask=live, other=0)
    fresh = source >= W
    source = tl.where(fresh, W - 1, source)
    level = tl.load(levels_ptr + b * W + source, mask=live, other=0.0).to(tl.float32)
    level = tl.where(fresh, 1.0, level)
    next_level = tl.load(next_levels_ptr + row, mask=live, other=0.0).to(tl.float32)
    clean = (next_level <= 0.0) | (level <= 0.0)
    share = tl.div_rn(next_level, tl.where(clean, 1.0, level))
    token = tl.load(tokens_ptr + row, mask=live, other=0)
    embeds_row = (b * stride_embeds_b + source * stride_embeds_w)[:, None]
    dimension = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    noised = live & fresh & (clean == 0)
    exists = (live & (noised == 0))[:, None] & (dimension < D)
    target = tl.load(weight_ptr + token[:, None] * stride_weight_v + dimension.to(tl.int64) * stride_weight_d, mask=exists, other=0.0)
    # To the output's dtype before anything is computed: a clean slot is fed exactly this.
    target = target.to(out_ptr.dtype.element_ty)
    moving = exists & (clean == 0)[:, None]
    noisy = tl.load(embeds_ptr + embeds_row + dimension.to(tl.int64) * stride_embeds_d, mask=moving, other=0.0).to(tl.float32)
    stepped = share[:, None] * noisy + (1.0 - share)[:, None] * target.to(tl.float32)
    out = tl.where(clean[:, None], target, stepped.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + row[:, None] * D + dimension, out, mask=exists)
    if tl.max(noised.to(tl.int32), axis=0) > 0:
        seed = tl.load(seeds_ptr + b, mask=live, other=0)[:, None]
        position = (tl.load(position_ptr + b, mask=live, other=0) + w)[:, None]
        quad = tl.program_id(1) * (BLOCK_D // 4) + tl.arange(0, BLOCK_D // 4)[None, :]
        words = philox(seed, quad, position, position * 0, NOISE)
        for pair in tl.static_range(2):
            radius = tl.sqrt_rn(-2.0 * tl.log(uniform_from_bits(words[2 * pair])))
            cosine, sine = cos_sin_of_turns(uniform_from_bits(words[2 * pair + 1]))
            for half in tl.static_range(2):
                lane = quad * 4 + 2 * pair + half
                wanted = noised[:, None] & (lane < D)
                noise = radius * (sine if half == 1 else cosine)
                mean = tl.load(mean_ptr + lane, mask=lane < D, other=0.0).to(tl.float32)
                std = tl.load(std_ptr + lane, mask=lane < D, other=0.0).to(tl.float32)
                # A slot that stays pure noise has no use for its token.
                used = wanted & (share != 1.0)[:, None]
                towards = tl.load(weight_ptr + token[:, None] * stride_weight_v + lane.to(tl.int64) * stride_weight_d, mask=used, other=0.0)
                towards = towards.to(out_ptr.dtype.element_ty).to(tl.float32)
                first = share[:, None] * (std * noise + mean) + (1.0 - share)[:, None] * towards
                tl.store(out_ptr + row[:, None] * D + lane, first.to(out_ptr.dtype.element_ty), mask=wanted)


def denoise_fused(
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
) -> torch.Tensor:
    """See :func:`sjd2_kernels.denoise`: one launch."""
    batch, window, width = embeds.shape
    rows = batch * window
    out = torch.empty(batch, window, width, dtype=embeds.dtype, device=embeds.device)
    if out.numel() == 0:
        return out
    block = min(1024, max(16, 1 << (width - 1).bit_length()))
    together = min(65_536 // block, 1 << (rows - 1).bit_length()) if INTERPRETED else 1
    with torch.cuda.device_of(embeds):
        denoise_kernel[(-(-rows // together), -(-width // block))](
            embeds,
            weight,
            mean.contiguous(),
            std.contiguous(),
            tokens.contiguous(),
            committed.contiguous(),
            levels.contiguous(),
            next_levels.contiguous(),
            seeds.contiguous(),
            position.contiguous(),
            out,
            rows,
            window,
            width,
            *embeds.stride(),
            *weight.stride(),
            ROWS=together,
            BLOCK_D=block,
            **launch_options(4),
        )
    return out
