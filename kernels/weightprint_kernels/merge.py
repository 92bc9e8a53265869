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
    return as_merged(merge_groups(rows, np.zeros(1, np.int64)))[0]


def merge_groups(rows: FLOAT64, starts: INT64) -> FLOAT64:
    """Merge consecutive groups of partial rows, float64 [groups, 7] as MOMENT_FIELDS; group i runs from ``starts[i]``
    to the next, none is empty."""
    n, shift, s2, s3 = rows[:, N_FINITE], rows[:, SHIFT], rows[:, S2], rows[:, S3]
    d = rows[:, S1] / np.maximum(n, 1)
    m2 = s2 - n * d**2
    m3 = s3 - 3 * d * s2 + 2 * n * d**3
    m4 = rows[:, S4] - 4 * d * s3 + 6 * d**2 * s2 - 3 * n * d**4
    moments = np.stack([n, shift + d, m2, m3, m4, rows[:, ABS_MAX], rows[:, N_ZERO]], axis=1)
    return merge_moments(moments, starts)


def merge_moments(moments: FLOAT64, starts: INT64) -> FLOAT64:
    """Merge consecutive groups of moments, float64 [n, 7] as MOMENT_FIELDS, into float64 [groups, 7]."""
    n, mean, m2, m3, m4, largest, zeros = moments.T
    total = np.add.reduceat(n, starts)
    mu = np.add.reduceat(n * mean, starts) / np.maximum(total, 1)
    e = mean - np.repeat(mu, np.diff(starts, append=len(n)))
    central = (
        m2 + n * e**2,
        m3 + 3 * e * m2 + n * e**3,
        m4 + 4 * e * m3 + 6 * e**2 * m2 + n * e**4,
    )
    summed = [np.add.reduceat(part, starts) for part in central]
    merged: FLOAT64 = np.stack(
        [total, mu, *summed, np.maximum.reduceat(largest, starts), np.add.reduceat(zeros, starts)], axis=1
    )
    return merged


def as_merged(moments: FLOAT64) -> list[MergedMoments]:
    """Rows of float64 [n, 7] as records."""
    return [
        MergedMoments(int(n), mean, m2, m3, m4, largest, int(zeros))
        for n, mean, m2, m3, m4, largest, zeros in moments.tolist()
    ]


def row_energies(rows: FLOAT64, counts: INT64, starts: INT64) -> FLOAT64:
    """Σ w² of each matrix row, float64 [matrix rows], S2 + 2 K S1 + n K² summed over the chunks from ``starts[i]`` on.

    nan where the row holds a non-finite element: there ``counts``, the elements of each chunk, exceed the finite ones.
    """
    shift = rows[:, SHIFT]
    energies = rows[:, S2] + 2 * shift * rows[:, S1] + rows[:, N_FINITE] * shift**2
    energies = np.where(rows[:, N_FINITE] < counts, np.nan, np.maximum(energies, 0.0))
    summed: FLOAT64 = np.add.reduceat(energies, starts)
    return summed
