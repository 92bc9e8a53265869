"""Corrections for many tests, on log10 p-values, so that nothing underflows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weightprint.compare.blocks import FLOAT64


def holm(log10_p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over the tests that were made; None, a test not made, is neither counted nor changed.

    The i-th smallest of n p-values is multiplied by n - i + 1 and never falls below the one before (Holm 1979).
    """
    corrected = holm_of(np.array([math.nan if value is None else value for value in log10_p], np.float64))
    return [None if before is None else after for before, after in zip(log10_p, corrected.tolist(), strict=True)]


def holm_of(log10_p: FLOAT64, more: int = 0) -> FLOAT64:
    """:func:`holm` of an array in which nan is a test not made; ``more`` tests were made of which nothing is known."""
    made = np.flatnonzero(~np.isnan(log10_p))
    order = made[np.argsort(log10_p[made], kind="stable")]
    raised = log10_p[order] + np.log10(np.arange(len(order), 0, -1) + more)
    corrected = np.full(len(log10_p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(raised), 0.0)
    return corrected


def bonferroni(log10_p: float, log10_factor: float) -> float:
    """One p-value times its number of tests, never above 1."""
    return min(0.0, log10_p + log10_factor)


def log10_count(number: int) -> float:
    """log10 of a number of tests."""
    return math.log10(max(number, 1))
