"""Device functions: raw logits to scaled logits, their order as integers, and random words.

Tiles are ``[R, N]``: R rows by N ids, reduced along ids. Every function repeats its definition (``processing.py``, ``random.py``) operation by
operation; with fused multiply-adds off (``launch_options``) scaled logits are bit for bit those of the definition.
"""

import torch
import triton
import triton.language as tl


def launch_options(warps: int, registers: int = 255) -> dict[str, int | bool]:
    """Options of every launch. A contracted multiply-add would give other scaled logits than the definition's two roundings.

    The register limit is what the threads of one program can have; stated, it keeps NVIDIA's assembler from spilling for the sake of occupancy.
    A lower one lets more programs of a kernel that waits for memory run at once; that nothing spills is checked by ``make check-triton``.
    """
    limit = {} if torch.version.hip else {"maxnreg": min(registers, 65_536 // (32 * warps))}
    return {"num_warps": warps, "enable_fp_fusion": False} | limit


LOWEST_KEY = tl.constexpr(-(2**31))
MASKED_KEY = tl.constexpr(-2139095041)  # of −inf
HIGHEST_KEY = tl.constexpr(2**31 - 1)


@triton.jit
def scaled_logits(
    logits_ptr,
    uncond_ptr,
    allowed_ptr,
    offset,  # int64, of every element
    uncond_offset,
    ids,
    mask,
    scale,  # broadcastable against the elements
    temperature,
    HAS_UNCOND: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
):
    """z of ``processing.py``, −inf where ``mask`` is false."""
    z = tl.load(logits_ptr + offset, mask=mask, other=float("-inf")).to(tl.float32)
    if HAS_UNCOND:
        uncond = tl.load(uncond_ptr + uncond_offset, mask=mask & (scale != 1.0), other=0.0).to(tl.float32)
        z = guided(z, uncond, scale)
    if HAS_ALLOWED:
        allowed = tl.load(allowed_ptr + ids, mask=mask, other=0)
        z = tl.where(allowed != 0, z, float("-inf"))
    return tempered(z, temperature)


@triton.jit
def guided(z, uncond, scale):
    """Classifier-free guidance: −inf where either branch is.

    At scale 1 the unconditional branch does not matter, and is 0, not read: 0 + 1 · (z − 0) is z, and −inf stays what it is.
    """
    lower = tl.minimum(z, uncond, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(lower == float("-inf"), lower, uncond + scale * (z - uncond))


@triton.jit
def tempered(z, temperature):
    """z / temperature. A rounded division takes as many instructions as all the rest, and nearly always it is by 1."""
    if tl.max((temperature != 1.0).to(tl.int32)) > 0:
        z = tl.div_rn(z, temperature)
    return z


@triton.jit
def ordered_key(z):
    """int32 in the order of z; +0 and −0 are equal."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(z == 0.0, 0, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


@triton.jit
def key_value(key):
    """The z of a key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def is_kept(z, threshold, cut, ids):
    """Whether processing keeps an id."""
    return (z > threshold) | ((z == threshold) & (ids <= cut))


@triton.jit
def probability(z, threshold, cut, logsumexp, ids):
    """p of every id; 0 where processing removed it. NaN and +inf, which make a row invalid, count as removed."""
    kept = is_kept(z, threshold, cut, ids) & (z < float("inf")) & (z > float("-inf"))
    return tl.where(kept, tl.exp(z - logsumexp), 0.0)


@triton.jit
def uniform_from_bits(word):
    """As ``random.uniform_from_bits``."""
    uniform = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return tl.minimum(uniform, 0.99999994039535522)


@triton.jit
def philox(seed, block, position, iteration, PURPOSE: tl.constexpr):
    """The four words of the counter (block, position, iteration, purpose); ``block`` decides the shape."""
    zero = (block * 0).to(tl.uint32)
    return tl.philox(
        seed.to(tl.uint64, bitcast=True) + zero.to(tl.uint64),
        block.to(tl.uint32) + zero,
        position.to(tl.uint32) + zero,
        iteration.to(tl.uint32) + zero,
        zero + PURPOSE,
    )


@triton.jit
def gumbel_from_uniform(uniform):
    """As ``random.gumbel_from_uniform``; log1p(−u) from a log of the rounded 1 − u, corrected by what rounding took away."""
    rest = 1.0 - uniform
    corrected = tl.log(rest) * tl.div_rn(uniform, 1.0 - rest)
    return -tl.log(-tl.where(rest == 1.0, -uniform, corrected))
