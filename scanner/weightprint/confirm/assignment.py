"""Best matchings of the heads of one layer with those of another, and how many heads a uniform one leaves in place.

Under the null hypothesis the heads of a layer are exchangeable: key-value heads among each other, and the query heads
that share one among themselves. A best matching moves along when they are permuted, so it is a uniform element of the
group of these permutations (kv! times shared!^kv elements), and the number of query heads that it maps to themselves
has a law that can be counted: for plain heads the rencontres numbers (de Montmort 1713), nested for groups. Ties would
be broken by number, in favour of the identity, so the heads are shuffled before the matching and put back after it.

Exact: laws are counted in integers, layers are convolved after exponential tilting, as in compare/exact.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from weightprint.compare.blocks import FLOAT64, INT64

_SEED = 20260424
_LEAST = 1e-290  # a term that would underflow counts as this: never too small
_SLACK = 1e-9  # of the rounding of all convolutions together


def best_matching(cost: FLOAT64) -> INT64:
    """The permutation that minimises the sum of cost[i, chosen[i]], of a square matrix: shortest augmenting paths
    (Jonker and Volgenant 1987), O(n^3)."""
    size = len(cost)
    assert cost.shape == (size, size)
    potential_row, potential_column = np.zeros(size + 1), np.zeros(size + 1)
    row_of = np.full(size + 1, -1, np.int64)  # column size is where each search begins
    for row in range(size):
        row_of[size] = row
        column = size
        shortest = np.full(size, np.inf)
        came_from = np.full(size, size, np.int64)
        done = np.zeros(size + 1, bool)
        while row_of[column] >= 0:
            done[column] = True
            own = int(row_of[column])
            open_columns = ~done[:size]
            reduced = cost[own] - potential_row[own] - potential_column[:size]
            better = open_columns & (reduced < shortest)
            shortest[better] = reduced[better]
            came_from[better] = column
            following = int(np.argmin(np.where(open_columns, shortest, np.inf)))
            step = float(shortest[following])
            potential_row[row_of[done]] += step
            potential_column[done] -= step
            shortest[open_columns] -= step
            column = following
        while column != size:
            before = int(came_from[column])
            row_of[column] = row_of[before]
            column = before
    chosen = np.empty(size, np.int64)
    chosen[row_of[:size]] = np.arange(size)
    return chosen


def heads_in_place(cost: FLOAT64, groups: int, number: int = 0) -> int:
    """How many query heads the best matching that respects the groups maps to themselves.

    ``cost`` is [heads, heads]; the heads of a group stand together. ``number`` is that of the layer, so that layers are
    shuffled differently.
    """
    heads = len(cost)
    shared = heads // groups
    generator = np.random.default_rng((_SEED, number))
    order = np.concatenate(
        [group * shared + generator.permutation(shared) for group in generator.permutation(groups).tolist()]
    )
    shuffled = cost[order].reshape(groups, shared, groups, shared)
    inner = np.empty((groups, groups, shared), np.int64)
    outer = np.empty((groups, groups))
    for a in range(groups):
        for b in range(groups):
            block = shuffled[a, :, b]
            inner[a, b] = best_matching(block)
            outer[a, b] = block[np.arange(shared), inner[a, b]].sum()
    partner = best_matching(outer)
    matched = np.concatenate([partner[a] * shared + inner[a, partner[a]] for a in range(groups)])
    return int((matched == order).sum())


def log10_in_place(count: int, layers: Sequence[tuple[int, int]]) -> float:
    """log10 of the probability that uniform matchings leave ``count`` heads or more in place, in layers of
    (groups, query heads that share one)."""
    most = sum(groups * shared for groups, shared in layers)
    assert 0 <= count <= most
    if count == 0:
        return 0.0
    if count == most:
        return smallest_log10(layers) * (1 - 1e-12)
    laws = [_log_law(groups, shared) for groups, shared in layers]
    tilt = _tilt(laws, count)
    total = np.ones(1)
    normal = 0.0
    for law in laws:
        tilted = law + tilt * np.arange(len(law))
        size = float(np.logaddexp.reduce(tilted))
        normal += size
        total = np.convolve(total, np.where(np.isfinite(law), np.maximum(np.exp(tilted - size), _LEAST), 0.0))
    at_least = np.arange(count, len(total))
    mass = float((total[count:] * np.exp(-tilt * (at_least - count))).sum())
    return min(0.0, (normal - tilt * count + math.log(mass * (1 + _SLACK))) / math.log(10))


def smallest_log10(layers: Sequence[tuple[int, int]]) -> float:
    """log10 of the smallest p that can be reached: every head in place."""
    orders = (math.lgamma(groups + 1) + groups * math.lgamma(shared + 1) for groups, shared in layers)
    return -sum(orders) / math.log(10)


def _tilt(laws: Sequence[FLOAT64], mean: float) -> float:
    """The tilt at which the sum has about this mean; any value near it would do as well."""
    low, high = 0.0, 1.0
    while _mean(laws, high) < mean and high < 2**9:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(laws, middle) < mean else (low, middle)
    return high


def _mean(laws: Sequence[FLOAT64], tilt: float) -> float:
    mean = 0.0
    for law in laws:
        weights = law + tilt * np.arange(len(law))
        weights = np.exp(weights - weights.max())
        mean += float(weights @ np.arange(len(law)) / weights.sum())
    return mean


@lru_cache(maxsize=64)
def _log_law(groups: int, shared: int) -> FLOAT64:
    """Natural logarithm of the probability of 0, 1, 2, ... heads in place, -inf where that cannot be."""
    counts = law_counts(groups, shared)
    everything = math.log(sum(counts))
    return np.array([math.log(count) - everything if count else -math.inf for count in counts])


def law_counts(groups: int, shared: int) -> list[int]:
    """How many elements of the group leave 0, 1, 2, ... query heads in place."""
    inner = rencontres(shared)
    any_order = math.factorial(shared)
    total = [0] * (groups * shared + 1)
    power = [1]  # of the heads of the groups in place
    for fixed, ways in enumerate(rencontres(groups)):
        others = ways * any_order ** (groups - fixed)
        for heads, count in enumerate(power):
            total[heads] += others * count
        power = _product(power, inner)
    return total


def rencontres(size: int) -> list[int]:
    """How many permutations of ``size`` leave exactly 0, 1, 2, ... in place."""
    derangements = [1]
    for number in range(1, size + 1):
        derangements.append(number * derangements[-1] + (-1) ** number)
    return [math.comb(size, fixed) * derangements[size - fixed] for fixed in range(size + 1)]


def _product(a: Sequence[int], b: Sequence[int]) -> list[int]:
    product = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] += x * y
    return product
