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
from weightprint_kernels.compute import column_energy_tiles, moments_rows, reduce
from weightprint_kernels.layout import (
    ABS_MAX,
    CHUNK_ELEMENTS,
    COLUMN_ENERGY,
    INT64,
    ITEMSIZE,
    N_FINITE,
    N_ZERO,
    NO_ENERGY,
    ROW_ENERGY,
    TILE_COLUMNS,
    TILE_ROWS,
    UINT8,
    Chunks,
    Rectangles,
    Reduced,
    Tiles,
    chunk_rectangles,
    rectangle,
    tile_rectangles,
)
from weightprint_kernels.merge import MergedMoments, as_merged, merge_rows, row_energies

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


Box = tuple[int, int, int, int]
"""Part of a matrix: top, bottom, left, right."""


def check_rectangles(backend: Backend, case: Case) -> None:
    """The whole matrix, its rows and columns without the first and the last, and two halves, in one table for each
    kind of energy, and then in a table in which the kinds take turns."""
    boxes = boxes_of(case)
    parts = parts_of(case, boxes)
    truths = [truth(part) for part in parts]
    energies = {axis: [energies_of(part, axis) for part in parts] for axis in (NO_ENERGY, ROW_ENERGY, COLUMN_ENERGY)}
    alike = [[axis] * len(boxes) for axis in energies]
    for axes in (*alike, [number % 3 for number in range(len(boxes))]):
        found = reduced_boxes(backend, case, boxes, axes)
        assert_merged(found.moments, truths)
        expected = [energies[axis][number] for number, axis in enumerate(axes)]
        assert_energies(found.energies, np.concatenate([np.zeros(0), *expected]))


def check_boxes(backend: Backend, case: Case, boxes: list[Box], axes: list[int]) -> None:
    """Any table of rectangles, by the engine's own call: moments, and the energies of one after the other."""
    found = reduced_boxes(backend, case, boxes, axes)
    parts = parts_of(case, boxes)
    assert_merged(found.moments, [truth(part) for part in parts])
    expected = [energies_of(part, axis) for part, axis in zip(parts, axes, strict=True)]
    assert_energies(found.energies, np.concatenate([np.zeros(0), *expected]))


def parts_of(case: Case, boxes: list[Box]) -> list[FLOAT64]:
    values = case.values()
    return [values[top:bottom, left:right] for top, bottom, left, right in boxes]


def boxes_of(case: Case) -> list[Box]:
    """Rectangles of a matrix: whole, without its border, and cut in two either way, where it has so many elements."""
    rows, columns = case.rows, case.columns
    down, across = max(rows // 2, 1), max(columns // 3, 1)
    boxes = [
        (0, rows, 0, columns),
        (1, rows - 1, 1, columns - 1),
        (0, rows, 0, across),
        (0, rows, across, columns),
        (0, down, 0, columns),
        (down, rows, 0, columns),
    ]
    return [box for box in boxes if box[0] < box[1] and box[2] < box[3]]


def reduced_boxes(backend: Backend, case: Case, boxes: list[Box], axes: list[int]) -> Reduced:
    """What the engine gets of these parts of a matrix: the same bytes each time and whatever lies beside them."""
    top, bottom, left, right = np.array(boxes, np.int64).T
    table = Rectangles(
        case.offset + top * case.stride + left * ITEMSIZE[case.dtype],
        np.full(len(boxes), case.stride, np.int64),
        bottom - top,
        right - left,
        np.array(axes, np.int64),
    )
    width = len(boxes) * 7

    def run(data: UINT8) -> FLOAT64:
        found = reduce(backend, data, backend.place(data), table, case.dtype)
        assert (found.moments.shape, found.moments.dtype) == ((len(boxes), 7), np.float64)
        assert found.energies.dtype == np.float64
        return np.concatenate([found.moments.reshape(-1), found.energies])

    whole = _repeated(case, run)
    return Reduced(whole[:width].reshape(-1, 7), whole[width:])


def assert_merged(moments: FLOAT64, truths: list[Truth]) -> None:
    """Every field written, counts exact, moments within the limits."""
    assert not np.isnan(moments).any()
    for merged, expected in zip(as_merged(moments), truths, strict=True):
        assert_moments(merged, expected)


def energies_of(values: FLOAT64, axis: int) -> FLOAT64:
    """Σ w² of a matrix's rows or columns in extended precision, nan where one holds a value that is not finite."""
    if axis == NO_ENERGY:
        return np.zeros(0)
    with np.errstate(invalid="ignore"):
        sums: FLOAT64 = (values.astype(np.longdouble) ** 2).sum(axis=1 if axis == ROW_ENERGY else 0).astype(np.float64)
    sums[~np.isfinite(sums)] = np.nan
    return sums


def assert_energies(found: FLOAT64, expected: FLOAT64) -> None:
    """Within the limit, which is relative down to the smallest squares."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerances.ENERGY_RELATIVE, atol=0)


def check_codes_in_lines(backend: Backend, case: Case) -> None:
    """Every code at its place in a row: the energy of its column is its square."""
    values = case.values()
    with np.errstate(invalid="ignore"):
        expected = np.where(np.isfinite(values), values * values, np.nan)
    boxes = [(row, row + 1, 0, case.columns) for row in range(case.rows)]
    found = reduced_boxes(backend, case, boxes, [COLUMN_ENERGY] * len(boxes))
    assert_energies(found.energies, expected.reshape(-1))
    np.testing.assert_array_equal(found.moments[:, 0], np.isfinite(values).sum(axis=1))
    np.testing.assert_array_equal(found.moments[:, 6], (values == 0).sum(axis=1))
    largest = np.where(np.isfinite(values), np.abs(values), 0).max(axis=1)
    np.testing.assert_array_equal(found.moments[:, 5], largest)


def check_codes_against_their_negatives(backend: Backend, case: Case) -> None:
    """Rows of a code and its negative in turn, which float32 sums about zero hold: moments are the code's powers."""
    (magnitude,) = np.abs(case.values()).T[:1]
    finite = np.isfinite(magnitude)
    boxes = [(row, row + 1, 0, case.columns) for row in range(case.rows)]
    found = reduced_boxes(backend, case, boxes, [ROW_ENERGY] * len(boxes))
    size = np.where(finite, magnitude, 0)
    count = np.where(finite, case.columns, 0)
    fields = [count, size, np.where(size == 0, count, 0)]
    np.testing.assert_array_equal(found.moments[:, [0, 5, 6]], np.stack(fields, axis=1))
    mean, m2, m3, m4 = found.moments[:, 1:5].T
    assert (np.abs(mean) <= tolerances.MEAN_IN_STANDARD_DEVIATIONS * size).all()
    np.testing.assert_allclose(m2, count * size**2, rtol=tolerances.VARIANCE_RELATIVE)
    assert (np.abs(m3) <= tolerances.SKEWNESS_ABSOLUTE * count * size**3).all()
    np.testing.assert_allclose(m4, count * size**4, rtol=tolerances.KURTOSIS_RELATIVE)
    assert_energies(found.energies, np.where(finite, count * size**2, np.nan))


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
    return chunk_rectangles(_whole(case), ITEMSIZE[case.dtype])


def _tiles(case: Case) -> Tiles:
    return tile_rectangles(_whole(case), ITEMSIZE[case.dtype])


def _whole(case: Case) -> Rectangles:
    return rectangle(case.offset, case.rows, case.columns, case.stride)


def _repeated(case: Case, run: Callable[[UINT8], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    results = [run(case.guarded(guard)) for guard in (*GUARDS, GUARDS[0])]
    assert len({result.tobytes() for result in results}) == 1, "results differ between runs or with the guard bytes"
    return results[0]


def _assert_rows(case: Case, rows: FLOAT64) -> None:
    values = case.values()
    per_row = -(-case.columns // CHUNK_ELEMENTS)
    assert rows.shape == (case.rows * per_row, 8)
    assert not np.isnan(rows).any(), "a field was not written, or a NaN leaked"
    pieces = [row[start : start + CHUNK_ELEMENTS] for row in values for start in range(0, case.columns, CHUNK_ELEMENTS)]
    counts = [(np.isfinite(piece).sum(), (piece == 0).sum()) for piece in pieces]
    np.testing.assert_array_equal(rows[:, [N_FINITE, N_ZERO]], counts)
    np.testing.assert_array_equal(rows[:, ABS_MAX], [truth(piece).abs_max for piece in pieces])
    for number, piece in enumerate(pieces):
        assert_moments(merge_rows(rows[number : number + 1]), truth(piece))
    assert_moments(merge_rows(rows), truth(values))
    firsts: INT64 = np.arange(case.rows) * per_row
    assert_energies(row_energies(rows, _chunks(case).count, firsts), energies_of(values, ROW_ENERGY))


def _assert_tiles(case: Case, sums: FLOAT64) -> None:
    values = case.values()
    corners = [(top, left) for top in range(0, case.rows, TILE_ROWS) for left in range(0, case.columns, TILE_COLUMNS)]
    assert sums.shape == (len(corners), TILE_COLUMNS)
    for number, (top, left) in enumerate(corners):
        tile = values[top : top + TILE_ROWS, left : left + TILE_COLUMNS]
        assert_energies(sums[number, : tile.shape[1]], energies_of(tile, COLUMN_ENERGY))
        assert (sums[number, tile.shape[1] :] == 0).all(), "columns beyond the tile are not zero"
