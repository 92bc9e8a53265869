"""Partial rows into moments, in float64 (one-pass updating formulas of Chan, Golub & LeVeque and of Pébay, 2008).

Per chunk of n finite elements with shift K and sums S1..S4: d = S1/n, mean = K + d, M2 = S2 - n d²,
M3 = S3 - 3 d S2 + 2 n d³, M4 = S4 - 4 d S3 + 6 d² S2 - 3 n d⁴. Over chunks, with mu = Σ n mean / N and e = mean - mu:
M2 = Σ (m2 + n e²), M3 = Σ (m3 + 3 e m2 + n e³), M4 = Σ (m4 + 4 e m3 + 6 e² m2 + n e⁴).
Chunks without a finite element, whose sums are all zero, count for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightprint_kernels.layout import ABS_MAX, FLOAT64, INT64, N_FINITE, N_ZERO, S1, S2, S3, S4, SHIFT


@dataclass(frozen=True)
class MergedMoments:
    """Central moments (not divided by the count) of the finite elements of some chunks; all zero where none is."""

    n_finite: int
    mean: float
    m2: float
    m3: float
    m4: float
    abs_max: float
    zeros: int


def merge_rows(rows: FLOAT64) -> MergedMoments:
    """Merge the partial rows, float64 [n, 8], of one set of chunks."""
    if not len(rows):
        return MergedMoments(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    return merge_groups(rows, np.zeros(1, np.int64))[0]


def merge_groups(rows: FLOAT64, starts: INT64) -> list[MergedMoments]:
    """Merge consecutive groups of partial rows; group i runs from ``starts[i]`` to the next, none is empty."""
    n, shift, s2, s3 = rows[:, N_FINITE], rows[:, SHIFT], rows[:, S2], rows[:, S3]
    d = rows[:, S1] / np.maximum(n, 1)
    m2 = s2 - n * d**2
    m3 = s3 - 3 * d * s2 + 2 * n * d**3
    m4 = rows[:, S4] - 4 * d * s3 + 6 * d**2 * s2 - 3 * n * d**4
    merged = _over(starts, n, shift + d, m2, m3, m4)
    abs_max = np.maximum.reduceat(rows[:, ABS_MAX], starts).tolist()
    zeros = np.add.reduceat(rows[:, N_ZERO], starts).tolist()
    return [
        MergedMoments(int(count), mean, m2, m3, m4, largest, int(zero))
        for (count, mean, m2, m3, m4), largest, zero in zip(merged.tolist(), abs_max, zeros, strict=True)
    ]


def combine(a: MergedMoments, b: MergedMoments) -> MergedMoments:
    """Merge two disjoint sets."""
    n, mean, m2, m3, m4 = (
        np.array([getattr(a, field), getattr(b, field)], dtype=np.float64)
        for field in ("n_finite", "mean", "m2", "m3", "m4")
    )
    count, *central = _over(np.zeros(1, np.int64), n, mean, m2, m3, m4)[0].tolist()
    return MergedMoments(
        int(count),
        mean=central[0],
        m2=central[1],
        m3=central[2],
        m4=central[3],
        abs_max=max(a.abs_max, b.abs_max),
        zeros=a.zeros + b.zeros,
    )


def _over(starts: INT64, n: FLOAT64, mean: FLOAT64, m2: FLOAT64, m3: FLOAT64, m4: FLOAT64) -> FLOAT64:
    """Count, mean, M2, M3, M4 of each group, float64 [groups, 5]."""
    total = np.add.reduceat(n, starts)
    mu = np.add.reduceat(n * mean, starts) / np.maximum(total, 1)
    e = mean - np.repeat(mu, np.diff(starts, append=len(n)))
    central = (
        m2 + n * e**2,
        m3 + 3 * e * m2 + n * e**3,
        m4 + 4 * e * m3 + 6 * e**2 * m2 + n * e**4,
    )
    merged: FLOAT64 = np.stack([total, mu, *(np.add.reduceat(part, starts) for part in central)], axis=1)
    return merged


def row_energies(rows: FLOAT64, per_row: int, counts: INT64) -> FLOAT64:
    """Σ w² of each matrix row, float64 [rows], from its ``per_row`` chunks: S2 + 2 K S1 + n K².

    nan where the row holds a non-finite element: there ``counts``, the elements of each chunk, exceed the finite ones.
    """
    shift = rows[:, SHIFT]
    energies = rows[:, S2] + 2 * shift * rows[:, S1] + rows[:, N_FINITE] * shift**2
    energies = np.where(rows[:, N_FINITE] < counts, np.nan, np.maximum(energies, 0.0))
    summed: FLOAT64 = energies.reshape(-1, per_row).sum(axis=1)
    return summed
