"""Device functions: the exact border of top-k and top-p, without a sort.

What is in question is narrowed from both sides: does enough (elements, or mass) lie at and above a probe? The tile is in registers, so that a
step is a comparison per element and a block-wide sum, and reads no memory. Histograms of 8 bits would need four steps, but each of them a pass
of shared-memory atomics, and masses in them would need float atomics, whose order is not repeatable. Sums of non-negative numbers in a fixed
order never fall when an element is added, so the search for a mass is exact as well.
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
def _log_odds(mass, population, least):
    """Where in a logistic distribution ``mass`` of the ``population`` lies above, for guesses: a float's bits are about its logarithm."""
    odds = tl.maximum(mass, least).to(tl.int32, bitcast=True) - tl.maximum(population - mass, least).to(tl.int32, bitcast=True)
    return odds.to(tl.float32)


@triton.jit
def largest_reaching(key, weight, target, population, by_mass):
    """The largest of ``key [R, N]`` at and above which ``weight [R, N]`` adds up to ``target [R]``; LOWEST_KEY where all of it does not.

    Weights are masses, or without ``by_mass`` 1 and 0. What is in question lies from ``low`` to ``high``. A step
    asks where the target would be if the values came from a logistic distribution of ``population [R]``, that is, were about normal; an end that
    stays where it is twice comes half as close (the Illinois rule). Where four steps in a row leave more than half in question, and after 24
    anyway, a step asks half way in the order of floats, which is never too often. A step that divides nothing is followed by a look at what is
    in question: often equal keys. Guesses decide how many steps it takes, never the result.
    """
    counted = weight > 0.0
    low, high = tl.min(tl.where(counted, key, HIGHEST_KEY), axis=1), tl.max(tl.where(counted, key, LOWEST_KEY), axis=1)
    at = tl.sum(weight, axis=1)  # what lies at and above ``low``
    above = at * 0.0  # and above ``high``
    reachable = at >= target
    least = tl.minimum(tl.where(by_mass, 1e-3 * at, 0.5), 0.5 * target)
    population += least
    wanted = _log_odds(target, population, least)
    odds_low, odds_high = _log_odds(at, population, least), _log_odds(above, population, least)
    slow, side, step = low * 0, low * 0, 0
    searching = (target > 0.0) & reachable & (low < high)
    going = tl.max(searching.to(tl.int32), axis=0)
    while going > 0:
        start = key_value(low)
        guess = ordered_key(start + (key_value(high) - start) * ((odds_low - wanted) / (odds_low - odds_high)))
        half = (low & high) + ((low ^ high) >> 1)
        probe = tl.minimum(tl.maximum(tl.where((slow > 3) | (step > 23), half, guess), low + 1), high)
        reached = tl.sum(tl.where(key >= probe[:, None], weight, 0.0), axis=1)
        idle = searching & ((reached == at) | (reached == above))
        rest = at - above
        raised = searching & (reached >= target)
        lowered = searching & (reached < target)
        odds = _log_odds(reached, population, least)
        odds_low = tl.where(raised, odds, tl.where(lowered & (side < 0), 0.5 * (odds_low + wanted), odds_low))
        odds_high = tl.where(lowered, odds, tl.where(raised & (side > 0), 0.5 * (odds_high + wanted), odds_high))
        side = tl.where(raised, 1, -1)
        low, at = tl.where(raised, probe, low), tl.where(raised, reached, at)
        high, above = tl.where(lowered, probe - 1, high), tl.where(lowered, reached, above)
        if tl.max(idle.to(tl.int32), axis=0) > 0:
            inside = counted & (key >= low[:, None]) & (key <= high[:, None])
            low = tl.where(searching, tl.min(tl.where(inside, key, HIGHEST_KEY), axis=1), low)
            high = tl.where(searching, tl.max(tl.where(inside, key, LOWEST_KEY), axis=1), high)
        # Exactly as many as are wanted, and the smallest of them is the answer. A sum of masses may hide one that is too small to matter.
        searching = searching & (low < high) & (by_mass | (reached != target))
        slow = tl.where(at - above > 0.5 * rest, slow + 1, 0)
        step += 1
        going = tl.max(searching.to(tl.int32), axis=0)
    answer = tl.min(tl.where(counted & (key >= low[:, None]), key, HIGHEST_KEY), axis=1)
    return tl.where(reachable, answer, LOWEST_KEY)


@triton.jit
def border_above(z, maximum, finite, most, COLUMNS: tl.constexpr, FIRST_GUESS: tl.constexpr):
    """A border with at most ``most`` of ``z [N, COLUMNS]`` above it and, if they differ enough, at least half of ``most``; and how many that is.

    ``finite`` of z are not −inf. Any such border serves: the first guess is right where z is about normal, and from there on the range from the
    mean to the ``maximum`` is halved. Ranges that no halving of values gets over in time (a mask of −1e38, say) are halved in the order of
    floats. The mean is that of the first column, and where some of z are −inf not even that.
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
def borders(
    z,  # [R, N], −inf where there is nothing
    present,  # [R, N]
    ids,  # [R, N]
    maximum,  # [R], of the whole row
    row_mass,  # [R], sum of exp(z − maximum) over the whole row; of rows that top-k limits it is not used
    top_k,  # [R] int32; 0: no limit
    top_p,  # [R]
    vocab,
    population,  # of how many ids z has the highest
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
):
    """Threshold, cut and log-sum-exp of every row, and the lowest key that the search relied on.

    Top-k is a search for a count, top-p one for a mass in what top-k left: two turns of one loop, so that the code is there once.
    """
    # From here on the key stands for z and for what is present: one tile in registers, and the weights beside it.
    key = tl.where(present, ordered_key(z), LOWEST_KEY)
    threshold = maximum * 0.0 + float("-inf")
    cut = top_k * 0 + vocab
    relied = top_k * 0 + HIGHEST_KEY
    kept_mass = row_mass
    for turn in range(0 if TOP_K else 1, 2 if TOP_P else 1):
        by_mass = turn > 0
        limited = tl.where(by_mass, top_p < 1.0, (top_k > 0) & (top_k < vocab))
        target = tl.where(limited, tl.where(by_mass, top_p * kept_mass, top_k.to(tl.float32)), 0.0)
        mass = tl.exp(key_value(key) - maximum[:, None])
        weight = tl.where(key > LOWEST_KEY, tl.where(by_mass, mass, 1.0), 0.0)
        border = largest_reaching(key, weight, target, tl.where(by_mass, kept_mass, population), by_mass)
        above = tl.sum(tl.where(key > border[:, None], weight, 0.0), axis=1)
        # The fewest of equal ones that reach the target: equal keys have equal mass.
        tied = limited[:, None] & (key == border[:, None])
        each = tl.where(by_mass, tl.maximum(tl.exp(key_value(border) - maximum), 1.2e-38), 1.0)
        wanted = tl.ceil(tl.div_rn(target - above, each))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 2147483520.0).to(tl.int32)
        border_cut = nth_tied(tied, ids, wanted)
        threshold, cut = tl.where(limited, key_value(border), threshold), tl.where(limited, border_cut, cut)
        relied = tl.where(limited, tl.minimum(relied, border), relied)
        # The very sum that the next turn begins with: a top-p next to 1 might not be reached by another.
        left = (key > border[:, None]) | (tied & (ids <= border_cut[:, None]))
        kept_mass = tl.where(limited, tl.sum(tl.where(left, tl.exp(key_value(key) - maximum[:, None]), 0.0), axis=1), kept_mass)
        key = tl.where(left | (limited[:, None] == 0), key, LOWEST_KEY)
    return threshold, cut, maximum + tl.log(kept_mass), relied
