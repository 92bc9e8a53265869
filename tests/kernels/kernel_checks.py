"""What every backend must do, as plain functions of a backend and a case, so that broken backends can be shown to fail.

Each runs the backend on the same matrix between two kinds of guard bytes, one of them twice: the results must be the
same bytes, so a byte read outside the matrix or a result that depends on time shows. Limits come from tolerances.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from kernel_cases import GUARDS, Case, Truth, truth

import tolerances
from weightprint_kernels.backend import Backend
from weightprint_kernels.compute import column_energy_tiles, moments_rows
from weightprint_kernels.layout import (
    ABS_MAX,
    CHUNK_ELEMENTS,
    ITEMSIZE,
    N_FINITE,
    N_ZERO,
    TILE_COLUMNS,
    TILE_ROWS,
    UINT8,
    Chunks,
    Tiles,
    chunk_matrix,
    chunks_per_row,
    tile_matrix,
)
from weightprint_kernels.merge import MergedMoments, merge_rows, row_energies

FLOAT64 = npt.NDArray[np.float64]


def check_moments(backend: Backend, case: Case) -> None:
    """float32 rows of a matrix that float32 holds: every field written, counts exact, moments within the limits."""

    def run(data: UINT8) -> npt.NDArray[np.float32]:
        return backend.moments(backend.place(data), _chunks(case), case.dtype)

    rows = _repeated(case, run)
    assert rows.dtype == np.float32
    _assert_rows(case, rows.astype(np.float64))


def check_extreme_moments(backend: Backend, case: Case) -> None:
    """The same through moments_rows, for matrices that float32 does not hold."""

    def run(data: UINT8) -> FLOAT64:
        return moments_rows(backend, data, backend.place(data), _chunks(case), case.dtype)

    _assert_rows(case, _repeated(case, run))


def check_column_energies(backend: Backend, case: Case) -> None:
    """float32 column sums of a matrix that float32 holds."""

    def run(data: UINT8) -> npt.NDArray[np.float32]:
        return backend.column_energies(backend.place(data), _tiles(case), case.dtype)

    sums = _repeated(case, run)
    assert sums.dtype == np.float32
    # Which non-finite value stands in a column that holds one is the backend's choice.
    sums[np.isinf(sums)] = np.nan
    _assert_tiles(case, sums.astype(np.float64))


def check_extreme_column_energies(backend: Backend, case: Case) -> None:
    """The same through column_energy_tiles, for matrices that float32 does not hold."""

    def run(data: UINT8) -> FLOAT64:
        return column_energy_tiles(backend, data, backend.place(data), _tiles(case), case.dtype)

    _assert_tiles(case, _repeated(case, run))


def check_single_elements(backend: Backend, case: Case) -> None:
    """One chunk for each element: the shift is the element, bit for bit."""
    values = case.values().reshape(-1)
    chunks = Chunks(
        case.offset + np.arange(values.size, dtype=np.int64) * ITEMSIZE[case.dtype], np.ones(values.size, np.int64)
    )
    data = case.guarded(GUARDS[0])
    rows = backend.moments(backend.place(data), chunks, case.dtype)
    finite = np.isfinite(values)
    expected = np.where(finite, values, 0.0)
    zeros = np.zeros_like(values)
    fields = [expected, zeros, zeros, zeros, zeros, np.abs(expected), finite, values == 0]
    np.testing.assert_array_equal(rows, np.stack(fields, axis=1).astype(np.float32))


def check_scattered_chunks(backend: Backend, case: Case, pieces: list[tuple[int, int]]) -> None:
    """Any table: pieces (first element, count) of a one-row case, overlapping, in any order."""
    itemsize = ITEMSIZE[case.dtype]
    first, count = np.array(pieces, np.int64).T

    def run(data: UINT8) -> npt.NDArray[np.float32]:
        return backend.moments(backend.place(data), Chunks(case.offset + first * itemsize, count), case.dtype)

    rows = _repeated(case, run).astype(np.float64)
    (values,) = case.values()
    for row, (start, length) in zip(rows, pieces, strict=True):
        assert_moments(merge_rows(row[None]), truth(values[start : start + length]))


def check_scattered_tiles(backend: Backend, case: Case, pieces: list[tuple[int, int, int, int]]) -> None:
    """Any table: pieces (top, left, rows, columns) of a matrix, overlapping, in any order."""
    itemsize = ITEMSIZE[case.dtype]
    top, left, height, width = np.array(pieces, np.int64).T
    offset = case.offset + top * case.stride + left * itemsize
    tiles = Tiles(offset, np.full(len(pieces), case.stride), height, width)

    def run(data: UINT8) -> npt.NDArray[np.float32]:
        return backend.column_energies(backend.place(data), tiles, case.dtype)

    sums = _repeated(case, run)
    values = case.values()
    expected = np.zeros(sums.shape)
    for row, (y, x, rows, columns) in zip(expected, pieces, strict=True):
        row[:columns] = (values[y : y + rows, x : x + columns] ** 2).sum(axis=0)
    np.testing.assert_allclose(sums, expected, rtol=tolerances.ENERGY_RELATIVE)


def assert_moments(merged: MergedMoments, expected: Truth) -> None:
    """Within the limits of tolerances.py; a constant has no spread at all."""
    assert (merged.n_finite, merged.zeros, merged.abs_max) == (expected.n_finite, expected.zeros, expected.abs_max)
    if expected.m2 == 0:
        assert (merged.m2, merged.m3, merged.m4) == (0, 0, 0)
        assert math.isclose(merged.mean, expected.mean, rel_tol=1e-15)
        return
    assert merged.m2 > 0
    n = expected.n_finite
    deviation = math.sqrt(expected.m2 / n)
    skewness, kurtosis = expected.m3 / n / deviation**3, expected.m4 / n / deviation**4
    own = math.sqrt(merged.m2 / n)
    own_skewness, own_kurtosis = merged.m3 / n / own**3, merged.m4 / n / own**4
    errors = {
        "mean": (abs(merged.mean - expected.mean) / deviation, tolerances.MEAN_IN_STANDARD_DEVIATIONS),
        "variance": (abs(merged.m2 / expected.m2 - 1), tolerances.VARIANCE_RELATIVE),
        # Absolute near zero; a skewness of 80 carries the relative error of its one outlier.
        "skewness": (abs(own_skewness - skewness) / max(1.0, abs(skewness)), tolerances.SKEWNESS_ABSOLUTE),
        "kurtosis": (abs(own_kurtosis / kurtosis - 1), tolerances.KURTOSIS_RELATIVE),
    }
    wrong = {name: error for name, (error, limit) in errors.items() if not error <= limit}
    assert not wrong, f"n={n}: {wrong}"


def _chunks(case: Case) -> Chunks:
    return chunk_matrix(case.offset, case.rows, case.columns, case.stride, ITEMSIZE[case.dtype])


def _tiles(case: Case) -> Tiles:
    return tile_matrix(case.offset, case.rows, case.columns, case.stride, ITEMSIZE[case.dtype])


def _repeated(case: Case, run: Callable[[UINT8], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    results = [run(case.guarded(guard)) for guard in (*GUARDS, GUARDS[0])]
    assert len({result.tobytes() for result in results}) == 1, "results differ between runs or with the guard bytes"
    return results[0]


def _assert_rows(case: Case, rows: FLOAT64) -> None:
    values = case.values()
    per_row = chunks_per_row(case.columns)
    assert rows.shape == (case.rows * per_row, 8)
    assert not np.isnan(rows).any(), "a field was not written, or a NaN leaked"
    pieces = [row[start : start + CHUNK_ELEMENTS] for row in values for start in range(0, case.columns, CHUNK_ELEMENTS)]
    counts = [(np.isfinite(piece).sum(), (piece == 0).sum()) for piece in pieces]
    np.testing.assert_array_equal(rows[:, [N_FINITE, N_ZERO]], counts)
    np.testing.assert_array_equal(rows[:, ABS_MAX], [truth(piece).abs_max for piece in pieces])
    for number, piece in enumerate(pieces):
        assert_moments(merge_rows(rows[number : number + 1]), truth(piece))
    assert_moments(merge_rows(rows), truth(values))
    energies = row_energies(rows, per_row, _chunks(case).count)
    expected = [math.fsum(row * row) if np.isfinite(row).all() else math.nan for row in values]
    np.testing.assert_allclose(energies, expected, rtol=tolerances.ENERGY_RELATIVE)


def _assert_tiles(case: Case, sums: FLOAT64) -> None:
    values = case.values()
    corners = [(top, left) for top in range(0, case.rows, TILE_ROWS) for left in range(0, case.columns, TILE_COLUMNS)]
    assert sums.shape == (len(corners), TILE_COLUMNS)
    for number, (top, left) in enumerate(corners):
        tile = values[top : top + TILE_ROWS, left : left + TILE_COLUMNS]
        expected = [math.fsum(column * column) if np.isfinite(column).all() else math.nan for column in tile.T]
        inside = sums[number, : tile.shape[1]]
        np.testing.assert_allclose(inside, expected, rtol=tolerances.ENERGY_RELATIVE)
        assert (sums[number, tile.shape[1] :] == 0).all(), "columns beyond the tile are not zero"
