"""Exact p-values of the order code: P(T' >= T) for a sum of m independent inner products of block codes.

One block's inner product is enumerated over all b! permutations. Counted as steps below its maximum it is an integer
X >= 0, and p = P(X_1 + ... + X_m <= k). For any tilt t, with M = E exp(-tX) and q the law of the sum of m copies
of X tilted by exp(-tx)/M,

    p = M^m exp(tk) * sum over s <= k of q(s) exp(-t(k - s)).

With t chosen so that the tilted sum has its mean near k, q is of ordinary size just where it is needed, and p keeps
its relative precision at any tail (exponential tilting: Esscher 1932; the m-fold convolution is one FFT).

**Never an underestimate.** The FFT wraps around at a length that covers the mean plus and minus a width beyond which
Bernstein's inequality leaves e^-46; wrapped mass only adds. What is cut off below is added by the same inequality.
Rounding: each transform errs by at most 8 eps log2(N) times the sum of magnitudes per entry (twice the classical
bound, Higham 2002, Theorem 24.2, applied entry by entry), the m-th power multiplies that by m; the resulting bound on
every q(s) is added to it, and 8 eps times the size of the logarithms to the result. So log10 p is never too small and
never above 0; it is too large by some 1e-10 at a thousand blocks and 1e-6 at a million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import FLOAT64, INT64, largest

STEP = 4
"""Inner products of codes differ by multiples of this, for every block length: swapping neighbouring ranks moves one
by 4 times an integer."""

_EPSILON = 2.0**-52
_NEGLIGIBLE = 46.0  # e^-46 = 1e-20
_SHARED_FROM_BLOCKS = 64  # below, a convolution is so short that none is worth sharing
_SHARED_TO_Z = 6.0  # above, a tilt of its own: few statistics of a scan are there


def log10_tail(statistic: int, blocks: int, block: int) -> float:
    """log10 of P(T' >= statistic) over ``blocks`` blocks of ``block`` units; an upper bound within rounding."""
    assert blocks >= 1
    steps = (largest(block) * blocks - statistic) // STEP
    assert steps >= 0, "statistic beyond the largest possible"
    if steps == 0:
        return -blocks * math.log10(math.factorial(block)) * (1 - 4 * _EPSILON)
    near = _near(steps, blocks, block)
    if near is None:
        total = _convolution(block, blocks, steps / (largest(block) * blocks / STEP))
        first, mass = total.first, _mass(total, steps)
    else:
        total, masses = _shared(block, blocks, near)
        first = total.first
        if steps >= first + len(masses):
            return 0.0
        mass = float(masses[steps - first])
    below = math.exp(-_NEGLIGIBLE - total.tilt * (steps - first)) if first > 0 else 0.0
    size = blocks * abs(total.log_mgf) + total.tilt * steps
    exponent = blocks * total.log_mgf + total.tilt * steps + 8 * _EPSILON * (size + 16)
    return min(0.0, (exponent + math.log(mass + below)) / math.log(10))


def log10_tails(statistics: INT64, blocks: int, block: int) -> FLOAT64:
    """:func:`log10_tail` of every entry, to the bit: each value that occurs is worked out once, in order, so that
    neighbours share a convolution. Many pairs have few values: a standard deviation of T over 4,096 blocks is 1,016
    steps."""
    values, places = np.unique(statistics, return_inverse=True)
    tails = [log10_tail(value, blocks, block) for value in values.tolist()]
    return np.array(tails, np.float64)[places.reshape(statistics.shape)]


def log10_tail_bounds(statistics: INT64, blocks: INT64, block: int) -> FLOAT64:
    """An upper bound of log10 P(T' >= statistic), for any number of statistics at once and without a convolution.

    It is Chernoff's, E exp(tT') exp(-t statistic), at the best t of a grid: up to some two digits larger than p in the
    far tail. ``blocks`` is int64 of the same shape; an entry without blocks gives 0.
    """
    means, tilts, log_mgf = _tilt_grid(block)
    counts = np.maximum(blocks, 1)
    steps = (largest(block) * counts - statistics) // STEP
    number = np.searchsorted(means, steps / counts)
    exponent = counts * log_mgf[number] + tilts[number] * steps
    size = counts * np.abs(log_mgf[number]) + tilts[number] * steps
    bound = (exponent + 8 * _EPSILON * (size + 16)) / math.log(10)
    return np.where(blocks > 0, np.minimum(bound, 0.0), 0.0)


@lru_cache(maxsize=8)
def _tilt_grid(block: int) -> tuple[FLOAT64, FLOAT64, FLOAT64]:
    """Tilted means between which each tilt serves, tilts from strong to none, and log E exp(-tX) of each."""
    counts = block_counts(block).astype(np.float64)
    values = np.arange(len(counts), dtype=np.float64)
    tilts = np.concatenate([np.geomspace(40.0, 1e-4, 2000), [0.0]])
    weights = counts * np.exp(-np.outer(tilts, values))
    means = (weights @ values) / weights.sum(axis=1)
    return (means[1:] + means[:-1]) / 2, tilts, np.log(weights.sum(axis=1) / math.factorial(block))


@lru_cache(maxsize=4096)
def critical(log10_p: float, blocks: int, block: int) -> int:
    """Smallest statistic whose log10 p is at or below ``log10_p`` < 0; beyond the largest if there is none."""
    assert log10_p < 0
    top = largest(block) * blocks
    if log10_tail(top, blocks, block) > log10_p:
        return top + STEP
    reached, missed = 0, 2 * top // STEP  # in steps below the top; at the bottom p is 1
    while missed - reached > 1:
        middle = (reached + missed) // 2
        if log10_tail(top - STEP * middle, blocks, block) <= log10_p:
            reached = middle
        else:
            missed = middle
    return top - STEP * reached


@lru_cache(maxsize=8)
def block_counts(block: int) -> INT64:
    """How many of the b! permutations lie 0, 1, 2, ... steps of 4 below the largest inner product."""
    assert 2 <= block <= 8
    codes = 2 * np.array(list(permutations(range(block))), np.int64) - (block - 1)
    below = largest(block) - codes @ codes[0]
    assert not (below % STEP).any()
    return np.bincount(below // STEP).astype(np.int64)


@dataclass(frozen=True)
class _Convolution:
    """q of the module docstring: ``law[i]`` is q(first + i), wrapped mass included; ``rounding`` bounds its error."""

    tilt: float
    log_mgf: float
    first: int
    law: FLOAT64
    rounding: float


def _near(steps: int, blocks: int, block: int) -> int | None:
    """Which whole z, if any, has a tilt that serves ``steps`` too: where the statistics of a scan crowd."""
    deviation = largest(block) / STEP * math.sqrt(blocks / (block - 1))
    z = (largest(block) * blocks / STEP - steps) / deviation
    if z <= 0.5:
        return 0
    return round(z) if blocks >= _SHARED_FROM_BLOCKS and z < _SHARED_TO_Z else None


@lru_cache(maxsize=32)
def _shared(block: int, blocks: int, z: int) -> tuple[_Convolution, FLOAT64]:
    """The convolution tilted to a whole z, and its masses (see :func:`_mass`) for every number of steps from first."""
    total = _convolution(block, blocks, 1 - z * math.sqrt(1 / (blocks * (block - 1))))
    # exp(t s) over the whole length reaches about exp(120) at z = 6: one cumulative sum of terms >= 0 will do.
    growth = np.exp(total.tilt * np.arange(len(total.law)))
    masses = np.cumsum((np.maximum(total.law, 0.0) + total.rounding) * growth) / growth
    return total, masses * (1 + len(masses) * _EPSILON)


def _mass(total: _Convolution, steps: int) -> float:
    """Sum of q(s) exp(-t (steps - s)) over s from first to ``steps``, rounding included."""
    span = np.arange(min(steps - total.first + 1, len(total.law)))
    weights = np.exp(total.tilt * (span + (total.first - steps)))
    return float(weights @ (total.law[: len(span)] + total.rounding)) * (1 + 64 * _EPSILON)


def _convolution(block: int, blocks: int, position: float) -> _Convolution:
    """The sum of ``blocks`` products in steps below the maximum; ``position`` is its tilted mean over its own."""
    counts = block_counts(block).astype(np.float64)
    values = np.arange(len(counts), dtype=np.float64)
    tilt = _solve_tilt(counts, values, position * largest(block) / STEP) if position < 1.0 else 0.0
    weights = counts * np.exp(-tilt * values)
    law = weights / weights.sum()
    mean = float(law @ values)
    variance = float(law @ (values - mean) ** 2)
    range_term = _NEGLIGIBLE * (len(counts) - 1) / 3
    width = 2 + math.ceil(range_term + math.sqrt(range_term**2 + 2 * _NEGLIGIBLE * blocks * variance))
    support = blocks * (len(counts) - 1) + 1
    length = 1 << (min(support, 2 * width + 2) - 1).bit_length()
    spectrum = np.fft.rfft(law, length)
    error = 8 * _EPSILON * (math.log2(length) + 1)
    # rfft keeps one half of the frequencies; twice their sum bounds the sum over all.
    magnitudes = float(2 * np.sum((np.abs(spectrum) + error) ** (blocks - 1)))
    first = 0 if support <= length else max(0, math.floor(mean * blocks) - width)
    return _Convolution(
        tilt=tilt,
        log_mgf=math.log(float(weights.sum()) / math.factorial(block)),
        first=first,
        law=np.roll(np.fft.irfft(_power(spectrum, blocks), length), -(first % length)),
        rounding=error * (blocks + 1) * magnitudes / length,
    )


def _solve_tilt(counts: FLOAT64, values: FLOAT64, mean: float) -> float:
    """The tilt that gives the law ``counts`` this mean, within rounding; any value near it would do as well."""
    low, high = 0.0, 1.0
    while _tilted_mean(counts, values, high) > mean:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        if _tilted_mean(counts, values, middle) > mean:
            low = middle
        else:
            high = middle
    return high


def _tilted_mean(counts: FLOAT64, values: FLOAT64, tilt: float) -> float:
    weights = counts * np.exp(-tilt * values)
    return float(weights @ values) / float(weights.sum())


def _power(base: npt.NDArray[np.complex128], exponent: int) -> npt.NDArray[np.complex128]:
    """``base`` to a power by repeated squaring: the same bits on every platform, unlike the complex power of libm."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result
