"""From merged sums to the figures that are kept, against numpy and scipy; what does not exist is nan, never zero."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weightprint.data import Matrix, MatrixStats, Part, TensorSpec
from weightprint.moments import matrix_stats
from weightprint_kernels.merge import MergedMoments

FLOAT64 = npt.NDArray[np.float64]


def spec(name: str, rows: int, columns: int, dtype: str = "bf16") -> TensorSpec:
    return TensorSpec(name, (rows, columns), dtype, Path("a"), 0, 2 * rows * columns)


def of_size(rows: int, columns: int) -> Matrix:
    part = Part(spec("q", rows, columns), (rows, columns), ((0, rows),))
    return Matrix("model.layers", 3, "q", (rows, columns), (part,), head_width=8)


def merged(values: FLOAT64, total: int | None = None) -> MergedMoments:
    """Central moments of finite values, as float64 numpy sees them."""
    d = values - values.mean()
    powers = [float((d**power).sum()) for power in (2, 3, 4)]
    return MergedMoments(
        len(values), float(values.mean()), *powers, float(np.abs(values).max()), int((values == 0).sum())
    )


def stats_of(values: FLOAT64) -> MatrixStats:
    return matrix_stats(of_size(1, len(values)), merged(values))


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(0.01, 0.02, 5000),
        np.random.default_rng(1).exponential(1.0, 5000),
        np.random.default_rng(2).normal(100, 0.5, 5000),
        np.random.default_rng(3).standard_t(5, 5000) * 1e-6,
        np.array([0.0, 1.0]),
        np.array([-1.0, 0.0, 0.0, 5.0]),
    ],
    ids=["normal", "skewed", "far-from-zero", "small-heavy-tails", "two", "four"],
)
def test_figures_are_those_of_numpy_and_scipy(values: FLOAT64) -> None:
    found = stats_of(values)
    assert found.mean == values.mean()
    assert math.isclose(found.std, values.std(ddof=0), rel_tol=1e-12)
    assert math.isclose(found.skewness, scipy.stats.skew(values), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(found.kurtosis, scipy.stats.kurtosis(values, fisher=False), rel_tol=1e-9)
    assert found.abs_max == np.abs(values).max()
    assert (found.count, found.non_finite, found.zeros) == (len(values), 0, int((values == 0).sum()))


def test_what_is_known_of_the_matrix_is_kept() -> None:
    found = matrix_stats(of_size(4, 6), merged(np.arange(24.0)))
    assert (found.stack, found.layer, found.role, found.shape, found.head_width) == ("model.layers", 3, "q", (4, 6), 8)
    assert (found.tensors, found.dtype) == (("q",), "bf16")


def test_parts_of_several_tensors_are_added_up() -> None:
    parts = (
        Part(spec("a", 10, 5, "bf16"), (10, 5), ((0, 2), (6, 8))),
        Part(spec("b", 3, 5, "f16"), (3, 5), ((0, 3),)),
    )
    found = matrix_stats(Matrix("s", 0, "v", (7, 5), parts), merged(np.arange(35.0)))
    assert (found.count, found.non_finite) == (35, 0)
    assert (found.tensors, found.dtype) == (("a", "b"), "bf16+f16")


def test_a_transposed_part_counts_its_columns() -> None:
    part = Part(spec("c_attn", 5, 12), (5, 12), ((4, 8),))
    found = matrix_stats(Matrix("s", 0, "k", (4, 5), (part,), transposed=True), merged(np.arange(20.0)))
    assert (found.count, found.non_finite) == (20, 0)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    found = matrix_stats(of_size(4, 6), merged(np.arange(20.0)))
    assert (found.count, found.non_finite) == (24, 4)
    assert found.mean == 9.5


def test_nothing_finite_has_no_figure() -> None:
    found = matrix_stats(of_size(2, 3), MergedMoments(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0))
    assert (found.count, found.non_finite, found.zeros) == (6, 6, 0)
    figures = [found.mean, found.std, found.skewness, found.kurtosis, found.abs_max]
    assert all(math.isnan(figure) for figure in figures)


@pytest.mark.parametrize("value", [0.0, 1.0, -1 / 3, 1e-30, 3e38])
def test_a_constant_has_no_shape(value: float) -> None:
    found = matrix_stats(of_size(1, 7), MergedMoments(7, value, 0.0, 0.0, 0.0, abs(value), 7 * (value == 0)))
    assert (found.mean, found.std, found.abs_max) == (value, 0.0, abs(value))
    assert math.isnan(found.skewness)
    assert math.isnan(found.kurtosis)


def test_a_spread_below_rounding_has_no_shape() -> None:
    rounding = replace(merged(np.ones(7)), m2=7 * 1e-26, m3=1e-30, m4=1e-30)
    found = matrix_stats(of_size(1, 7), rounding)
    assert found.std == pytest.approx(1e-13)
    assert math.isnan(found.skewness)
    assert math.isnan(found.kurtosis)


def test_a_sum_that_rounding_made_negative_is_no_spread() -> None:
    assert matrix_stats(of_size(1, 7), replace(merged(np.ones(7)), m2=-1e-40)).std == 0.0


@given(hnp.arrays(np.float64, st.integers(2, 200), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_figures_of_any_values_exist_or_are_nan(values: FLOAT64) -> None:
    found = stats_of(values)
    assert 0 <= found.std <= 2 * found.abs_max
    for figure in (found.mean, found.std, found.abs_max):
        assert math.isfinite(figure)
    if not math.isnan(found.kurtosis):
        # Pearson's inequality; it holds for every distribution.
        assert found.kurtosis >= found.skewness**2 + 1 - 1e-6 * found.kurtosis
