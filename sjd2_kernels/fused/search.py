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
def count_of(chosen):
    """How many of ``chosen [R, N]`` are true, ``[R]``: exact, as no tile has 2^24 elements.

    A sum of integers made of booleans is turned into a mask of bits by the compiler, to count those: four instructions per element in place of two.
    """
    return tl.sum(tl.where(chosen, 1.0, 0.0), axis=1).to(tl.int32)


@triton.jit
def _first_open_bit(lowest, highest):
    """The highest bit in which two keys differ, 0 if in none, and what they have in common above it."""
    open_bits = lowest ^ highest
    for step in tl.static_range(5):
        open_bits |= open_bits >> (1 << step)
    signs = open_bits < 0
    return tl.where(signs, LOWEST_KEY, open_bits - (open_bits >> 1)), tl.where(signs, LOWEST_KEY, highest & ~open_bits)


@triton.jit
def largest_reaching(key, mass, target, WEIGHTED: tl.constexpr):
    """The largest of ``key [R, N]`` at and above which ``mass [R, N]`` adds up to ``target [R]``; LOWEST_KEY where all of it does not.

    Without ``WEIGHTED`` every key above LOWEST_KEY counts 1, and ``mass`` is not used. Bits that all keys in question have in common are no question;
    which those are is looked at in the beginning, and again where two bits made no difference: of equal keys not all bits need to be asked for.
    """
    counted = key > LOWEST_KEY
    if WEIGHTED:
        counted = mass > 0.0
    each = mass if WEIGHTED else 1.0
    lowest, highest = tl.min(tl.where(counted, key, HIGHEST_KEY), axis=1), tl.max(tl.where(counted, key, LOWEST_KEY), axis=1)
    total = tl.sum(tl.where(counted, each, 0.0), axis=1)
    bit, threshold = _first_open_bit(lowest, highest)
    at, above = total, total * 0.0  # what lies at and above the threshold, and above all that is in question
    idle = bit * 0
    found = (target <= 0.0) | (total < target)
    going = tl.max(((bit != 0) & (found == 0)).to(tl.int32), axis=0)
    while going > 0:
        candidate = threshold ^ bit
        reached = tl.sum(tl.where(key >= candidate[:, None], each, 0.0), axis=1)
        idle = tl.where((reached == at) | (reached == above), idle + 1, 0)
        enough = reached >= target
        threshold = tl.where(enough, candidate, threshold)
        at, above = tl.where(enough, reached, at), tl.where(enough, above, reached)
        if not WEIGHTED:
            # Exactly as many as are wanted, and the smallest of them is the answer. A sum of masses may hide one that is too small to matter.
            found = found | (reached == target)
        if tl.max(idle, axis=0) > 1:
            asked = tl.where(bit == 0, -1, tl.where(bit < 0, LOWEST_KEY, -bit))  # this bit and those above it; of a row that is done all
            inside = counted & (((key ^ threshold[:, None]) & asked[:, None]) == 0)
            lowest, highest = tl.min(tl.where(inside, key, HIGHEST_KEY), axis=1), tl.max(tl.where(inside, key, LOWEST_KEY), axis=1)
            bit, common = _first_open_bit(lowest, highest)
            bit, threshold = tl.where(lowest < highest, bit, 0), tl.where(lowest <= highest, common, threshold)
            idle = bit * 0
        else:
            bit = tl.where(bit < 0, 0x40000000, bit >> 1)
        going = tl.max(((bit != 0) & (found == 0)).to(tl.int32), axis=0)
    answer = tl.min(tl.where(counted & (key >= threshold[:, None]), key, HIGHEST_KEY), axis=1)
    return tl.where(total >= target, answer, LOWEST_KEY)


@triton.jit
def border_above(z, maximum, finite, most, COLUMNS: tl.constexpr, FIRST_GUESS: tl.constexpr):
    """A border with at most ``most`` of ``z [N, COLUMNS]`` above it and, if they differ enough, at least half of ``most``; and how many that is.

    ``finite`` of z are not −inf. Any such border serves: the first guess is right where z is about normal, and from there on the range from the mean to
    the ``maximum`` is halved, a few steps where the exact border takes some twenty. Ranges that no halving of values gets over in time (a mask of
    −1e38, say) are halved in the order of floats. The mean is that of the first column, and where some of z are −inf not even that.
    """
    some = tl.sum(tl.where(tl.arange(0, COLUMNS)[None, :] == 0, z, 0.0), axis=1)
    mean = tl.div_rn(tl.sum(tl.where(some > float("-inf"), some, 0.0)) * COLUMNS, tl.maximum(finite, 1).to(tl.float32))
    high = maximum
    low = tl.minimum(tl.maximum(mean, -1.7e38), high)
    share = FIRST_GUESS
    step, count = 0, 0
    going = finite > most
    while going:
        low_key, high_key = ordered_key(low), ordered_key(high)
        middle = key_value((low_key & high_key) + ((low_key ^ high_key) >> 1))
        middle = tl.where(step < 8, (1.0 - share) * low + share * high, middle)
        between = (middle > low) & (middle < high)
        above = tl.sum(tl.where(z > middle, 1.0, 0.0)).to(tl.int32)
        low = tl.where(above > most, middle, low)
        lowered = (above <= most) & between
        high, count = tl.where(lowered, middle, high), tl.where(lowered, above, count)
        share = 0.5
        step += 1
        going = between & ((above > most) | (above < most // 2))
    return tl.where(finite <= most, float("-inf"), high), tl.where(finite <= most, finite, count)


@triton.jit
def nth_tied(tied, ids, wanted):
    """The id of the ``wanted``-th of the ``tied [R, N]`` ids, which rise; the last one where there are fewer."""
    cut = tl.max(tl.where(tied, ids, -1), axis=1)
    if tl.max((count_of(tied) > wanted).to(tl.int32), axis=0) > 0:
        cut = tl.max(tl.where(tied & (tl.cumsum(tied.to(tl.int32), axis=1) <= wanted[:, None]), ids, -1), axis=1)
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
        border = largest_reaching(key, key, k.to(tl.float32), False)
        greater = count_of(key > border[:, None])
        border_cut = nth_tied(limited[:, None] & (key == border[:, None]), ids, k - greater)
        k_border, k_cut = tl.where(limited, border, k_border), tl.where(limited, border_cut, k_cut)
        threshold, cut = tl.where(limited, key_value(border), threshold), k_cut
        relied = tl.where(limited, border, relied)
        kept_mass = tl.where(limited, tl.sum(_kept_mass(key, ids, maximum, k_border, k_cut), axis=1), row_mass)
    if TOP_P:
        applies = top_p < 1.0
        target = top_p * kept_mass
        mass = _kept_mass(key, ids, maximum, k_border, k_cut)
        border = largest_reaching(key, mass, target, True)
        above = tl.sum(tl.where(key > border[:, None], mass, 0.0), axis=1)
        # Equal keys have equal mass: the fewest of them that reach the target.
        tied = (key == border[:, None]) & ((key > k_border[:, None]) | (ids <= k_cut[:, None]))
        each = tl.exp(key_value(border) - maximum)
        wanted = tl.ceil(tl.div_rn(target - above, tl.maximum(each, 1.2e-38)))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 2147483520.0).to(tl.int32)
        border_cut = nth_tied(tied & applies[:, None], ids, wanted)
        threshold = tl.where(applies, key_value(border), threshold)
        cut = tl.where(applies, border_cut, cut)
        relied = tl.where(applies, tl.minimum(relied, border), relied)
        inside = (key > border[:, None]) | (tied & (ids <= border_cut[:, None]))
        kept_mass = tl.where(applies, tl.sum(tl.where(inside, mass, 0.0), axis=1), kept_mass)
    return threshold, cut, maximum + tl.log(kept_mass), relied
