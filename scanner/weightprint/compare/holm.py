"""Corrections for many tests, on log10 p-values, so that nothing underflows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def holm(log10_p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over the tests that were made; None, a test not made, is neither counted nor changed.

    The i-th smallest of n p-values is multiplied by n - i + 1 and never falls below the one before (Holm 1979).
    """
    made = [index for index, value in enumerate(log10_p) if value is not None]
    values = np.array([log10_p[index] for index in made], np.float64)
    order = np.argsort(values, kind="stable")
    raised = values[order] + np.log10(np.arange(len(values), 0, -1))
    corrected: list[float | None] = [None] * len(log10_p)
    for rank, value in zip(order, np.minimum(np.maximum.accumulate(raised), 0.0), strict=True):
        corrected[made[rank]] = float(value)
    return corrected


def bonferroni(log10_p: float, log10_factor: float) -> float:
    """One p-value times its number of tests, never above 1."""
    return min(0.0, log10_p + log10_factor)


def log10_count(number: int) -> float:
    """log10 of a number of tests."""
    return math.log10(max(number, 1))
