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
    ROW_ENERGY,
    TILE_COLUMNS,
    chunk_rectangles,
    rectangle,
    tile_rectangles,
)
from weightprint_kernels.merge import as_merged, merge_rows, row_energies

if INTERPRETING:
    pytest.skip("takes the interpreter minutes", allow_module_level=True)

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
