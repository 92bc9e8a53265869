"""Are two fingerprints of the same weights: to the bit, or up to the rounding of a storage format?

Rounding model. A format with unit roundoff u and smallest step s moves a weight w by an error of variance at most
(u w)^2/3 + s^2/12, independent over weights. The energy of n weights, sum w^2, then moves relatively by

    2u sqrt(K/3n)  +  2 (s/sqrt(12)) / (r sqrt(n))     (root mean square of the term linear in the errors)
    u^2            +  s^2 / (12 r^2)                   (bound of the quadratic term, a bias)

with r^2 the mean of w^2 and K its Pearson kurtosis about zero, both taken from the matrix. The bound is three times
the sum, summed over both formats, plus a floor of 1e-6 for the float32 arithmetic of two backends. The same bound with
n = all elements holds for the standard deviation (its relative change is half that of the energy).

A short fine-tune of a coarse format may move weights less than rounding does; nothing that is kept can tell, and the
word is then re-encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from weightprint.attention_part import attention_part
from weightprint.compare.stacks import match_stacks
from weightprint.data import FLOAT32, Fingerprint, MatrixStats

FLOOR = 1e-6
_MARGIN = 3.0

FORMATS: Mapping[str, tuple[float, float]] = {
    "f64": (2.0**-53, 0.0),
    "f32": (2.0**-24, 2.0**-149),
    "bf16": (2.0**-8, 2.0**-133),
    "f16": (2.0**-11, 2.0**-24),
    "f8_e4m3": (2.0**-4, 2.0**-9),
    "f8_e5m2": (2.0**-3, 2.0**-16),
}
"""Unit roundoff and smallest step of each encoding; another one is never called re-encoded."""

_STATISTICS = ("shape", "count", "mean", "std", "skewness", "kurtosis", "abs_max", "zeros", "non_finite")

Matched = tuple[MatrixStats, MatrixStats]


def common(a: Fingerprint, b: Fingerprint) -> tuple[Fingerprint, Fingerprint, tuple[str, ...]]:
    """What both sides have read: attention alone if one of them has read no more; and what is said of that."""
    lacking = [side.name for side in (a, b) if side.feed_forward is None]
    if len(lacking) != 1:
        return a, b, ()
    said = f"this is said of the attention matrices alone: feed-forward blocks of {lacking[0]} were not read"
    return attention_part(a), attention_part(b), (said,)


def matched(a: Fingerprint, b: Fingerprint) -> tuple[Matched, ...] | None:
    """The matrices of two fingerprints side by side; None unless every one has a partner of the same shape."""
    if not a.matrices or len(a.matrices) != len(b.matrices) or len(a.energies) != len(b.energies):
        return None
    names = match_stacks(sorted({m.stack for m in a.matrices}), sorted({m.stack for m in b.matrices}))
    if names is None:
        return None
    of_b = {(m.stack, m.layer, m.role): m for m in b.matrices}
    pairs = [(m, of_b.get((names[m.stack], m.layer, m.role))) for m in a.matrices]
    both = tuple((m, n) for m, n in pairs if n is not None and n.shape == m.shape)
    alike = len(both) == len(pairs) and all(
        (names.get(stack, stack), layer, channel) in b.energies for stack, layer, channel in a.energies
    )
    return both if alike else None


def bit_equal(a: Fingerprint, b: Fingerprint, pairs: tuple[Matched, ...]) -> bool:
    """Whether every statistic and every unit energy has the same value; nan equals nan."""
    return all(_same_statistics(m, n) for m, n in pairs) and all(
        np.array_equal(x, y, equal_nan=True) for _, x, y in _energies(a, b, pairs)
    )


def within_rounding(a: Fingerprint, b: Fingerprint, pairs: tuple[Matched, ...]) -> bool:
    """Whether standard deviations and unit energies differ by no more than storage rounding explains."""
    for m, n in pairs:
        if m.dtype != n.dtype and not (_known(m) and _known(n)):
            return False
        if m.non_finite != n.non_finite or not _close(m.std, n.std, bound(m, n, m.count)):
            return False
    by_key = {(m.stack, m.layer, m.role): (m, n) for m, n in pairs}
    compared = False
    for key, x, y in _energies(a, b, pairs):
        if key not in by_key or x.shape != y.shape:
            return False
        m, n = by_key[key]
        difference = relative_rms(x, y)
        if difference is None or difference > bound(m, n, max(m.count // max(len(x), 1), 1)):
            return False
        compared = True
    return compared


def bound(a: MatrixStats, b: MatrixStats, count: int) -> float:
    """Largest relative change of the energy of ``count`` weights that rounding explains; see the module docstring."""
    if a.dtype == b.dtype:
        return FLOOR
    square = a.mean**2 + a.std**2
    if not square > 0 or count < 1:
        return FLOOR
    fourth = a.kurtosis * a.std**4 + 4 * a.mean * a.skewness * a.std**3 + 6 * a.mean**2 * a.std**2 + a.mean**4
    kurtosis = max(fourth / square**2, 1.0) if math.isfinite(fourth) else 3.0
    total = 0.0
    for name in {part for dtype in (a.dtype, b.dtype) for part in dtype.split("+")}:
        roundoff, step = FORMATS[name]
        linear = 2 * roundoff * math.sqrt(kurtosis / (3 * count)) + 2 * step / math.sqrt(12 * square * count)
        total += linear + roundoff**2 + step**2 / (12 * square)
    return FLOOR + _MARGIN * total


def relative_rms(a: FLOAT32, b: FLOAT32) -> float | None:
    """Root mean square of the relative differences of two sets of energies; None if their gaps differ."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return None
    x, y = x[finite], y[finite]
    middle = (x + y) / 2
    if not len(x) or not middle.any():
        return 0.0
    relative = np.divide(x - y, middle, out=np.zeros_like(x), where=middle > 0)
    return float(np.sqrt(np.mean(relative**2)))


def _same_statistics(m: MatrixStats, n: MatrixStats) -> bool:
    return all(
        x == y or (x != x and y != y)  # noqa: PLR0124  nan equals nan here
        for x, y in ((getattr(m, name), getattr(n, name)) for name in _STATISTICS)
    )


def _energies(
    a: Fingerprint, b: Fingerprint, pairs: tuple[Matched, ...]
) -> Iterator[tuple[tuple[str, int, str], FLOAT32, FLOAT32]]:
    names = {m.stack: n.stack for m, n in pairs}
    for (stack, layer, channel), energies in a.energies.items():
        yield (stack, layer, channel), energies, b.energies[names.get(stack, stack), layer, channel]


def _known(matrix: MatrixStats) -> bool:
    return all(part in FORMATS for part in matrix.dtype.split("+"))


def _close(a: float, b: float, limit: float) -> bool:
    return (a != a and b != b) or abs(a - b) <= limit * max(abs(a), abs(b))  # noqa: PLR0124  nan equals nan here
