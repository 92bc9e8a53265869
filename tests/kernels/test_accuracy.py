"""Accuracy over four million elements, where errors of single chunks would add up."""

import functools
import math

import numpy as np
import pytest
from kernel_backends import INTERPRETING, backends
from kernel_cases import GUARDS, Case, Truth, encode, normal, truth
from kernel_checks import assert_moments

import tolerances
from weightprint_kernels.compute import column_energy_tiles, moments_rows, reduce
from weightprint_kernels.layout import (
    CHUNK_ELEMENTS,
    COLUMN_ENERGY,
    ITEMSIZE,
    NO_ENERGY,
    ROW_ENERGY,
    TILE_COLUMNS,
    chunk_rectangles,
    rectangle,
    tile_rectangles,
)
from weightprint_kernels.merge import as_merged, merge_rows, row_energies

if INTERPRETING:
    pytest.skip("takes the interpreter minutes", allow_module_level=True)


@pytest.mark.parametrize("period", [4, 6, 8, 12, 16, 32, 64])
@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("backend", backends())
def test_small_values_after_large_ones(backend: str, dtype: str, period: int) -> None:
    """Each lane adds many squares to one that is so much larger that all are rounded the same way."""
    large = 16.0 if dtype == "f8_e4m3" else 1.0  # or its smallest could not be as small
    line = large * np.resize([1.0, -1.0], 64 // ITEMSIZE[dtype])
    lines = np.tile(line * 2.0**-12, (512, 1))
    lines[::period] = line
    matrix = Case("small-after-large", dtype, encode(lines.reshape(64, -1), dtype))
    data = matrix.guarded(GUARDS[0])
    made = backends()[backend]()
    for axis in (NO_ENERGY, ROW_ENERGY, COLUMN_ENERGY):
        wanted = rectangle(matrix.offset, matrix.rows, matrix.columns, matrix.stride, axis)
        (merged,) = as_merged(reduce(made, data, made.place(data), wanted, dtype).moments)
        assert_moments(merged, truth(matrix.values()))


ROWS, COLUMNS = 448, 9360
"""Rows of one full chunk and a rest; tiles of two heights and two widths."""


@functools.cache
def case(mean: float) -> Case:
    return Case(f"mean-{mean:g}", "bf16", encode(normal((ROWS, COLUMNS), 11, mean=mean, spread=0.02), "bf16"))


@functools.cache
def expected(mean: float) -> Truth:
    return truth(case(mean).values())


@pytest.mark.parametrize("mean", [0.0, 1.0], ids="mean{:g}".format)
@pytest.mark.parametrize("backend", backends())
def test_moments_of_four_million_elements(backend: str, mean: float) -> None:
    matrix = case(mean)
    made = backends()[backend]()
    data = matrix.guarded(GUARDS[0])
    chunks = chunk_rectangles(rectangle(matrix.offset, ROWS, COLUMNS, matrix.stride), ITEMSIZE["bf16"])
    rows = moments_rows(made, data, made.place(data), chunks, "bf16")
    assert_moments(merge_rows(rows), expected(mean))
    energies = row_energies(rows, chunks.count, np.arange(ROWS) * -(-COLUMNS // CHUNK_ELEMENTS))
    assert math.isclose(energies.sum(), (matrix.values() ** 2).sum(), rel_tol=tolerances.ENERGY_RELATIVE)


@pytest.mark.parametrize("mean", [0.0, 1.0], ids="mean{:g}".format)
@pytest.mark.parametrize("backend", backends())
def test_column_energies_of_four_million_elements(backend: str, mean: float) -> None:
    matrix = case(mean)
    made = backends()[backend]()
    data = matrix.guarded(GUARDS[0])
    tiles = tile_rectangles(rectangle(matrix.offset, ROWS, COLUMNS, matrix.stride), ITEMSIZE["bf16"])
    sums = column_energy_tiles(made, data, made.place(data), tiles, "bf16")
    across = -(-COLUMNS // TILE_COLUMNS)
    by_column = sums.reshape(-1, across * TILE_COLUMNS).sum(axis=0)[:COLUMNS]
    np.testing.assert_allclose(by_column, (matrix.values() ** 2).sum(axis=0), rtol=tolerances.ENERGY_RELATIVE)


@pytest.mark.parametrize("axis", [ROW_ENERGY, COLUMN_ENERGY], ids=["rows", "columns"])
@pytest.mark.parametrize("mean", [0.0, 1.0], ids="mean{:g}".format)
@pytest.mark.parametrize("backend", backends())
def test_rectangle_of_four_million_elements(backend: str, mean: float, axis: int) -> None:
    matrix = case(mean)
    made = backends()[backend]()
    data = matrix.guarded(GUARDS[0])
    whole = rectangle(matrix.offset, ROWS, COLUMNS, matrix.stride, axis)
    found = reduce(made, data, made.place(data), whole, "bf16")
    assert_moments(as_merged(found.moments)[0], expected(mean))
    energies = (matrix.values() ** 2).sum(axis=1 if axis == ROW_ENERGY else 0)
    np.testing.assert_allclose(found.energies, energies, rtol=tolerances.ENERGY_RELATIVE)
