"""Device functions: the exact border of top-k and top-p, without a sort.

The threshold is built bit by bit from the top: a bit stays set if enough elements (or enough mass) lie at or above the candidate. The tile
is in registers, so that a step is a comparison per element and a block-wide sum, and reads no memory. Histograms of 8 bits would need four
steps instead of up to 32, but each of them a pass of shared-memory atomics, and masses in them would need float atomics, whose order is not
repeatable. Sums of non-negative numbers in a fixed order never fall when an element is added, so the search for a mass is exact as well.
"""

import triton
import triton.language as tl

from .logits import HIGHEST_KEY, LOWEST_KEY, key_value, ordered_key


@triton.jit
def kth_largest(key, lowest, k):
    """The k-th largest of ``key [R, N]``, of which at least k are ``lowest [R]`` or more; some key where k is 0."""
    # Bits that all of those have in common are no question. What is in question is up to the first that differs.
    highest = tl.max(key, axis=1)
    open_bits = lowest ^ highest
    for step in tl.static_range(5):
        open_bits |= open_bits >> (1 << step)
    signs = open_bits < 0  # no bit in common
    weight = tl.where(signs, LOWEST_KEY, open_bits - (open_bits >> 1))
    threshold = tl.where(signs, LOWEST_KEY, highest & ~open_bits)
    exact = k <= 0
    going = tl.max((k > 0).to(tl.int32), axis=0)
    while going > 0:
        candidate = threshold ^ weight
        count = tl.sum((key >= candidate[:, None]).to(tl.int32), axis=1)
        threshold = tl.where(count >= k, candidate, threshold)
        weight = tl.where(weight < 0, 0x40000000, weight >> 1)
        # Once exactly k lie above it the candidate separates them, and the smallest of them is the answer.
        exact = exact | (count == k)
        going = tl.max(((weight != 0) & (exact == 0)).to(tl.int32), axis=0)
    return tl.min(tl.where(key >= threshold[:, None], key, HIGHEST_KEY), axis=1)


@triton.jit
def border_above(z, maximum, most):
    """A border of ``z [1, N]`` with at most ``most`` values above it and, if they differ enough, at least three quarters of ``most``.

    Any such border serves, so halving the range from the mean to the ``maximum [1]`` takes a few steps where the exact one takes some twenty. Ranges
    that no halving of values gets over in time (a mask of −1e38, say) are halved in the order of floats.
    """
    finite = z > float("-inf")
    count = tl.sum(finite.to(tl.int32), axis=1)
    mean = tl.div_rn(tl.sum(tl.where(finite, z, 0.0), axis=1), tl.maximum(count, 1).to(tl.float32))
    high = maximum
    low = tl.minimum(tl.maximum(mean, -1.7e38), high)
    few = count <= most
    step = 0
    going = tl.max((few == 0).to(tl.int32), axis=0)
    while going > 0:
        low_key, high_key = ordered_key(low), ordered_key(high)
        middle = key_value((low_key & high_key) + ((low_key ^ high_key) >> 1))
        middle = tl.where(step < 8, 0.5 * low + 0.5 * high, middle)
        between = (middle > low) & (middle < high)
        above = tl.sum((z > middle[:, None]).to(tl.int32), axis=1)
        low = tl.where(above > most, middle, low)
        high = tl.where((above <= most) & between, middle, high)
        step += 1
        going = tl.max((between & ((above > most) | (above < most - most // 4))).to(tl.int32), axis=0)
    return tl.where(few, float("-inf"), high)


@triton.jit
def nucleus_threshold(key, mass, target):
    """The largest key at and above which the masses ``[R, N]`` reach ``target [R]``."""
    weight = tl.min(key * 0, axis=1) + LOWEST_KEY
    threshold = weight
    for _ in range(32):
        candidate = threshold ^ weight
        reached = tl.sum(tl.where(key >= candidate[:, None], mass, 0.0), axis=1) >= target
        threshold = tl.where(reached, candidate, threshold)
        weight = tl.where(weight < 0, 0x40000000, weight >> 1)
    return threshold


@triton.jit
def nth_tied(tied, ids, wanted, ID_BITS: tl.constexpr):
    """The id of the ``wanted``-th of the ``tied [R, N]`` ids, by rising id; the last one where there are fewer."""
    count = tl.sum(tied.to(tl.int32), axis=1)
    cut = tl.max(tl.where(tied, ids, -1), axis=1)
    if tl.max((count > wanted).to(tl.int32), axis=0) > 0:
        below = count * 0
        for step in range(ID_BITS):
            candidate = below + (1 << (ID_BITS - 1 - step))
            inside = tl.sum((tied & (ids < candidate[:, None])).to(tl.int32), axis=1)
            below = tl.where(inside < wanted, candidate, below)
        cut = tl.where(count > wanted, below, cut)
    return cut


@triton.jit
def _kept_mass(key, ids, maximum, k_border, k_cut):
    """exp(z − maximum) of what top-k left, 0 elsewhere."""
    kept = (key > k_border[:, None]) | ((key == k_border[:, None]) & (key > LOWEST_KEY) & (ids <= k_cut[:, None]))
    return tl.where(kept, tl.exp(key_value(key) - maximum[:, None]), 0.0)


@triton.jit
def borders(
    z,  # [R, N], −inf where there is nothing
    present,  # [R, N]
    ids,  # [R, N]
    maximum,  # [R], of the whole row
    row_mass,  # [R], sum of exp(z − maximum) over the whole row; of rows that top-k limits it is not used
    top_k,  # [R] int32; 0: no limit
    top_p,  # [R]
    vocab,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    ID_BITS: tl.constexpr,
):
    """Threshold, cut and log-sum-exp of every row, and the lowest key that the search relied on."""
    # From here on the key stands for z and for what is present: one tile in registers, and the masses beside it only for top-p.
    key = tl.where(present, ordered_key(z), LOWEST_KEY)
    threshold = maximum * 0.0 + float("-inf")
    cut = top_k * 0 + vocab
    relied = top_k * 0 + HIGHEST_KEY
    k_border, k_cut = top_k * 0 + LOWEST_KEY, top_k * 0 + vocab
    kept_mass = row_mass
    if TOP_K:
        limited = (top_k > 0) & (top_k < vocab)
        k = tl.where(limited, top_k, 0)
        border = kth_largest(key, tl.min(tl.where(present, key, HIGHEST_KEY), axis=1), k)
        greater = tl.sum((key > border[:, None]).to(tl.int32), axis=1)
        border_cut = nth_tied(limited[:, None] & (key == border[:, None]), ids, k - greater, ID_BITS)
        k_border, k_cut = tl.where(limited, border, k_border), tl.where(limited, border_cut, k_cut)
        threshold, cut = tl.where(limited, key_value(border), threshold), k_cut
        relied = tl.where(limited, border, relied)
        kept_mass = tl.where(limited, tl.sum(_kept_mass(key, ids, maximum, k_border, k_cut), axis=1), row_mass)
    if TOP_P:
        applies = top_p < 1.0
        target = top_p * kept_mass
        mass = _kept_mass(key, ids, maximum, k_border, k_cut)
        border = nucleus_threshold(key, mass, target)
        above = tl.sum(tl.where(key > border[:, None], mass, 0.0), axis=1)
        # Equal keys have equal mass: the fewest of them that reach the target.
        tied = (key == border[:, None]) & ((key > k_border[:, None]) | (ids <= k_cut[:, None]))
        each = tl.exp(key_value(border) - maximum)
        wanted = tl.ceil(tl.div_rn(target - above, tl.maximum(each, 1.2e-38)))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 2147483520.0).to(tl.int32)
        border_cut = nth_tied(tied & applies[:, None], ids, wanted, ID_BITS)
        threshold = tl.where(applies, key_value(border), threshold)
        cut = tl.where(applies, border_cut, cut)
        relied = tl.where(applies, tl.minimum(relied, border), relied)
        inside = (key > border[:, None]) | (tied & (ids <= border_cut[:, None]))
        kept_mass = tl.where(applies, tl.sum(tl.where(inside, mass, 0.0), axis=1), kept_mass)
    return threshold, cut, maximum + tl.log(kept_mass), relied
