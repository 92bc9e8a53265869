"""Figures of how well a score tells related pairs from unrelated ones, and of whether p-values are uniform.

Scores are larger for related pairs. A pair without a score counts as the lowest: nothing was found in it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kstest, mannwhitneyu, rankdata

from weightprint.compare.families import components
from weightprint.compare.screen import pearson, stretch
from weightprint.data import Fingerprint

FLOAT64 = npt.NDArray[np.float64]
LEVELS = (0.05, 0.01, 0.001)
FALSE_RATES = (0.01, 0.001)
MOMENTS = ("std", "skewness", "kurtosis")
ROLES = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Separation:
    """ROC AUC, true positive rate at each of FALSE_RATES, and where the two sets of scores end."""

    related: int
    unrelated: int
    auc: float
    true_positives: tuple[float, ...]
    smallest_related: float
    largest_unrelated: float


def separation(related: FLOAT64, unrelated: FLOAT64) -> Separation:
    """How two sets of scores lie apart; nan where one of them is empty."""
    if not len(related) or not len(unrelated):
        nan = math.nan
        return Separation(len(related), len(unrelated), nan, (nan,) * len(FALSE_RATES), nan, nan)
    area = float(mannwhitneyu(related, unrelated).statistic) / (len(related) * len(unrelated))
    limits = [np.quantile(unrelated, 1 - rate, method="higher") for rate in FALSE_RATES]
    return Separation(
        related=len(related),
        unrelated=len(unrelated),
        auc=area,
        true_positives=tuple(float((related > limit).mean()) for limit in limits),
        smallest_related=float(related.min()),
        largest_unrelated=float(unrelated.max()),
    )


@dataclass(frozen=True)
class Uniformity:
    """Of p-values under the null hypothesis: Kolmogorov-Smirnov p, and how many are at most each of LEVELS."""

    number: int
    kolmogorov_smirnov: float
    at_most: tuple[int, ...]


def uniformity(p: FLOAT64) -> Uniformity:
    """Whether p-values look uniform. Exact p of a discrete statistic lie a little above it."""
    if not len(p):
        return Uniformity(0, math.nan, (0,) * len(LEVELS))
    counts = tuple(int((p <= level).sum()) for level in LEVELS)
    return Uniformity(len(p), float(kstest(p, "uniform").pvalue), counts)


def adjusted_rand_index(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two clusterings of the same members (Hubert and Arabie 1985)."""

    def pairs(labels: Iterable[Hashable]) -> int:
        return sum(math.comb(count, 2) for count in Counter(labels).values())

    together, own, other = pairs(zip(first, second, strict=True)), pairs(first), pairs(second)
    expected = own * other / math.comb(len(first), 2)
    largest = (own + other) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def clusters(names: Sequence[str], links: Iterable[tuple[str, str]]) -> list[str]:
    """A label for each name: that of its connected component, or its own."""
    component = components(links)
    return [component.get(name, name) for name in names]


def best_clustering(
    names: Sequence[str], truth: Sequence[Hashable], scored: Sequence[tuple[str, str, float]]
) -> tuple[float, float]:
    """The largest adjusted Rand index that linking all pairs from a score on gives, and that score.

    It is the most that can be said for a score: a user does not know the truth.
    """
    found = (-math.inf, math.nan)
    for limit in np.unique([score for _, _, score in scored]).tolist():
        own = clusters(names, ((a, b) for a, b, score in scored if score >= limit))
        found = max(found, (adjusted_rand_index(own, truth), limit))
    return found


def moment_score(a: Fingerprint, b: Fingerprint) -> float | None:
    """Mean Spearman correlation of the curves of standard deviation, skewness and kurtosis over the layers, role by
    role, for the stack with most matrices; the shorter curve is stretched onto the longer. None without a curve."""
    found = []
    for role, moment in itertools.product(ROLES, MOMENTS):
        curves = [_curve(fingerprint, role, moment) for fingerprint in (a, b)]
        length = max(map(len, curves))
        if min(map(len, curves)) >= 3 and all(np.isfinite(own).all() and np.ptp(own) > 0 for own in curves):
            ranks = [rankdata(stretch(own, length)) for own in curves]
            found.append(float(pearson(ranks[0], ranks[1])))
    return float(np.mean(found)) if found else None


def _curve(fingerprint: Fingerprint, role: str, moment: str) -> FLOAT64:
    own = [matrix for matrix in fingerprint.matrices if matrix.role == role]
    if not own:
        return np.zeros(0)
    stack = Counter(matrix.stack for matrix in own).most_common(1)[0][0]
    ordered = sorted((matrix for matrix in own if matrix.stack == stack), key=lambda matrix: matrix.layer)
    return np.array([getattr(matrix, moment) for matrix in ordered], np.float64)
