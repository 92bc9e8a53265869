"""From merged sums to the figures that are kept: population standard deviation, skewness, Pearson kurtosis."""

from __future__ import annotations

import math

from weightprint.data import Matrix, MatrixStats
from weightprint_kernels.merge import MergedMoments


def matrix_stats(matrix: Matrix, merged: MergedMoments) -> MatrixStats:
    """Moments of one matrix over its finite elements.

    std = sqrt(M2/N), skewness = (M3/N) / std³, kurtosis = (M4/N) / std⁴ (normal = 3); nan where the figure does
    not exist.
    """
    size = sum(
        (stop - start) * part.stored[0 if matrix.transposed else 1]
        for part in matrix.parts
        for start, stop in part.ranges
    )
    count = int(merged.n_finite)
    mean = std = skewness = kurtosis = abs_max = math.nan
    if count:
        mean, abs_max = float(merged.mean), float(merged.abs_max)
        variance = max(float(merged.m2) / count, 0.0)
        std = math.sqrt(variance)
        # A spread below the rounding of the mean is no spread: its third and fourth moments are noise.
        if std > abs_max * 1e-12:
            skewness = float(merged.m3) / count / std**3
            kurtosis = float(merged.m4) / count / std**4
    return MatrixStats(
        stack=matrix.stack,
        layer=matrix.layer,
        role=matrix.role,
        tensors=tuple(dict.fromkeys(part.tensor.name for part in matrix.parts)),  # a stack of experts is one
        shape=matrix.shape,
        dtype="+".join(sorted({part.tensor.dtype for part in matrix.parts})),
        count=size,
        mean=mean,
        std=std,
        skewness=skewness,
        kurtosis=kurtosis,
        abs_max=abs_max,
        zeros=int(merged.zeros),
        non_finite=size - count,
        head_width=matrix.head_width,
    )
