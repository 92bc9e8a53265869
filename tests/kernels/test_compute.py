"""Exactly what float32 cannot hold is done again in float64; what it holds is left as the backend gave it."""

import math
from typing import Any

import numpy as np
import pytest
from kernel_backends import backends
from kernel_cases import GUARDS, Case, encode, normal, truth
from kernel_checks import assert_moments

import tolerances
from weightprint_kernels import compute
from weightprint_kernels.compute import chosen, column_energy_tiles, moments_rows, reduce, trusted_rows
from weightprint_kernels.layout import (
    CHUNK_ELEMENTS,
    COLUMN_ENERGY,
    FLOAT32,
    FLOAT64,
    NO_ENERGY,
    ROW_ENERGY,
    TILE_COLUMNS,
    UINT8,
    Chunks,
    Rectangles,
    Reduced,
    Tiles,
    chunk_rectangles,
    rectangle,
    tile_rectangles,
)
from weightprint_kernels.merge import merge_rows
from weightprint_kernels.reference import column_energies_float64, moments_float64

COLUMNS = 300
ALTERNATING = np.where(np.arange(COLUMNS) % 2, -1.0, 1.0)
NOISE = normal((1, COLUMNS), 5)[0]

# name -> one row of a float32 matrix, and whether float32 sums lose it
ROWS: dict[str, tuple[FLOAT64, bool]] = {
    "usual": (NOISE, False),
    "mean-1": (1 + NOISE, False),
    "zeros": (0 * NOISE, False),
    "constant": (np.full(COLUMNS, 1 / 3), False),
    "largest-constant": (np.full(COLUMNS, 3e38), False),
    "all-nan": (np.full(COLUMNS, np.nan), False),
    "some-nan": (np.where(np.arange(COLUMNS) % 7 == 0, np.nan, NOISE), False),
    "some-infinite": (np.where(np.arange(COLUMNS) % 7 == 0, np.inf * ALTERNATING, NOISE), False),
    "fourth-power-overflows": (ALTERNATING * 1e10, True),
    "square-overflows": (ALTERNATING * 1e30, True),
    "sum-overflows": (3e38 * ALTERNATING * (np.arange(COLUMNS) % 3 > 0), True),
    "fourth-power-underflows": (1e-10 * NOISE, True),
    "square-underflows": (1e-22 * NOISE, True),
    "subnormal": (1e-40 * ALTERNATING, True),
    "tiny-constant": (np.full(COLUMNS, 1e-20), True),
}
MATRIX = Case("rows", "f32", np.concatenate([encode(row, "f32") for row, _lost in ROWS.values()]))


class Given:
    """A backend that gives what it was told to."""

    name = "given"
    device = "cpu"

    def __init__(self, result: FLOAT32) -> None:
        self.result = result

    def place(self, data: UINT8) -> UINT8:
        return data

    def moments(self, _buffer: Any, _chunks: Chunks, _dtype: str) -> FLOAT32:
        return self.result

    def column_energies(self, _buffer: Any, _tiles: Tiles, _dtype: str) -> FLOAT32:
        return self.result


@pytest.fixture
def redone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of the chunks and tiles that the reference was asked for."""
    offsets: list[int] = []

    def rows(data: UINT8, chunks: Chunks, dtype: str) -> FLOAT64:
        offsets.extend(chunks.offset.tolist())
        return moments_float64(data, chunks, dtype)

    def sums(data: UINT8, tiles: Tiles, dtype: str) -> FLOAT64:
        offsets.extend(tiles.offset.tolist())
        return column_energies_float64(data, tiles, dtype)

    monkeypatch.setattr(compute, "moments_float64", rows)
    monkeypatch.setattr(compute, "column_energies_float64", sums)
    return offsets


@pytest.mark.parametrize("backend", backends())
def test_rows_that_float32_cannot_hold_are_redone(backend: str, redone: list[int]) -> None:
    made = backends()[backend]()
    chunks = chunk_rectangles(rectangle(MATRIX.offset, MATRIX.rows, MATRIX.columns, MATRIX.stride), 4)
    data = MATRIX.guarded(GUARDS[0])
    rows = moments_rows(made, data, made.place(data), chunks, "f32")
    assert rows.dtype == np.float64
    named = dict(zip(chunks.offset.tolist(), ROWS, strict=True))
    assert [named[offset] for offset in redone] == [name for name, (_row, lost) in ROWS.items() if lost]
    for row, values in zip(rows, MATRIX.values(), strict=True):
        assert_moments(merge_rows(row[None]), truth(values))


def test_healthy_rows_are_as_the_backend_gave_them(redone: list[int]) -> None:
    given = np.array([[0.5, 0.1, 0.2, 0.3, 0.4, 1, 8, 0], [0, 0, 0, 0, 0, 0, 8, 8]], np.float32)
    data = np.zeros(32, np.uint8)
    rows = moments_rows(Given(given), data, data, chunk_rectangles(rectangle(0, 2, 8, 16), 2), "bf16")
    np.testing.assert_array_equal(rows, given.astype(np.float64))
    assert redone == []


def test_rows_are_redone_from_the_bytes_of_their_own_chunk() -> None:
    raw = encode(normal((3, 16), 1), "bf16")
    chunks = chunk_rectangles(rectangle(0, 3, 16, 32), 2)
    given = np.array([[0.5, 0.1, 0.2, 0.3, 0.4, 1, 16, 0]] * 3, np.float32)
    given[1, 4] = np.inf
    rows = moments_rows(Given(given), raw.reshape(-1), None, chunks, "bf16")
    expected = given.astype(np.float64)
    expected[1] = moments_float64(raw[1], chunk_rectangles(rectangle(0, 1, 16, 32), 2), "bf16")[0]
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("row", "trusted"),
    [
        pytest.param([0.1, 0, 1, 0, 1, 1, 100, 0], True, id="usual"),
        pytest.param([0.1, 0, 0, 0, 0, 0.1, 100, 0], True, id="constant"),
        pytest.param([-0.1, 0, 0, 0, 0, 0.1, 100, 0], True, id="negative-constant"),
        pytest.param([0, 0, 0, 0, 0, 0, 100, 100], True, id="zeros"),
        pytest.param([0, 0, 0, 0, 0, 0, 0, 0], True, id="empty"),
        pytest.param([0, 0, 1e-15, 0, 1e-33, 1e-8, 50, 0], True, id="variance-2e-17"),
        pytest.param([0, 0, 1e-16, 0, 1e-33, 1e-8, 50, 0], False, id="variance-2e-18"),
        pytest.param([0, 0, 0, 0, 0, 1e-22, 100, 0], False, id="square-underflowed"),
        pytest.param([1e-12, 0, 0, 0, 0, 1e-12, 100, 0], False, id="tiny-constant"),
        pytest.param([0.1, 0, np.inf, 0, np.inf, 1, 100, 0], False, id="square-overflowed"),
        pytest.param([0.1, 0, 1e20, 0, np.inf, 1e10, 100, 0], False, id="fourth-power-overflowed"),
        pytest.param([0.1, 0, 1e20, np.nan, 1e38, 1e10, 100, 0], False, id="third-power-cancelled"),
        pytest.param([0.1, np.nan, 1e20, 0, 1e38, 1e10, 100, 0], False, id="sum-cancelled"),
        pytest.param([np.inf, 0, 1, 0, 1, 1, 100, 0], False, id="infinite-shift"),
        pytest.param([np.nan] * 8, False, id="unwritten"),
    ],
)
def test_trusted_rows(row: list[float], trusted: bool) -> None:
    assert trusted_rows(np.array([row])).tolist() == [trusted]


# name -> one column, and whether its tile is redone; every tile holds a usual column beside it
COLUMN_SUMS: dict[str, tuple[float, bool]] = {
    "usual": (0.5, False),
    "small": (1e-20, False),
    "zero": (0.0, True),
    "underflowed": (1e-31, True),
    "overflowed": (math.inf, True),
    "not-a-number": (math.nan, True),
}


@pytest.mark.parametrize("name", COLUMN_SUMS)
def test_tiles_are_redone_where_a_column_is_lost(name: str, redone: list[int]) -> None:
    given, lost = COLUMN_SUMS[name]
    raw = encode(normal((6, 4), 2), "bf16")
    tiles = Tiles(np.array([0, 24]), np.array([8, 8]), np.array([3, 3]), np.array([2, 2]))
    sums = np.zeros((2, TILE_COLUMNS), np.float32)
    sums[:, :2] = [[0.25, 0.75], [0.25, given]]
    result = column_energy_tiles(Given(sums), raw.reshape(-1), None, tiles, "bf16")
    assert redone == ([24] if lost else [])
    expected = sums.astype(np.float64)
    if lost:
        expected[1] = column_energies_float64(raw.reshape(-1), tiles, "bf16")[1]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("backend", backends())
def test_columns_that_hold_no_number_are_nan_and_their_neighbours_are_not(backend: str) -> None:
    values = np.array([[1.0, np.nan, np.inf, -np.inf, 2.0], [1.0, 1.0, 1.0, 1.0, 3.0]])
    raw = encode(values, "f16")
    data = raw.reshape(-1)
    made = backends()[backend]()
    result = column_energy_tiles(made, data, made.place(data), tile_rectangles(rectangle(0, 2, 5, 10), 2), "f16")
    expected = [2, np.nan, np.nan, np.nan, 13]
    np.testing.assert_allclose(result[0, :5], expected, rtol=tolerances.ENERGY_RELATIVE)
    assert (result[0, 5:] == 0).all()


@pytest.mark.parametrize("backend", backends())
def test_no_chunk_and_no_tile_give_empty_tables(backend: str) -> None:
    nothing = np.zeros(0, np.uint8)
    made = backends()[backend]()
    buffer = made.place(nothing)
    assert moments_rows(made, nothing, buffer, chunk_rectangles(rectangle(0, 0, 5, 10), 2), "bf16").shape == (0, 8)
    sums = column_energy_tiles(made, nothing, buffer, tile_rectangles(rectangle(0, 3, 0, 0), 2), "bf16")
    assert sums.shape == (0, TILE_COLUMNS)


@pytest.mark.parametrize("backend", backends())
def test_one_lost_chunk_of_a_long_row_is_redone_alone(backend: str, redone: list[int]) -> None:
    values = normal((1, 3 * CHUNK_ELEMENTS), 4)
    values[0, CHUNK_ELEMENTS + 3] = 1e30
    data = encode(values, "bf16").reshape(-1)
    made = backends()[backend]()
    chunks = chunk_rectangles(rectangle(0, 1, values.shape[1], len(data)), 2)
    moments_rows(made, data, made.place(data), chunks, "bf16")
    assert redone == [2 * CHUNK_ELEMENTS]


class OnePass(Given):
    """A backend that reduces rectangles itself, and is not to be asked for anything else."""

    def __init__(self) -> None:
        super().__init__(np.full((1, 8), np.nan, np.float32))
        self.answer = Reduced(np.ones((1, 7)), np.ones(3))

    def reduce(self, _buffer: Any, _rectangles: Rectangles, _dtype: str) -> Reduced:
        return self.answer


def test_a_backend_that_reduces_rectangles_is_left_to_it() -> None:
    data = np.zeros(32, np.uint8)
    backend = OnePass()
    assert reduce(backend, data, data, rectangle(0, 3, 2, 4, ROW_ENERGY), "bf16") is backend.answer


def test_tiles_are_asked_of_those_that_want_column_energies_alone(redone: list[int]) -> None:
    """Three rectangles of zeros, whose tiles are all redone: the one of the second is."""
    data = np.zeros(64, np.uint8)
    chunks = np.zeros((4, 8), np.float32)
    sums = np.zeros((1, TILE_COLUMNS), np.float32)

    class Two(Given):
        def column_energies(self, _buffer: Any, tiles: Tiles, _dtype: str) -> FLOAT32:
            assert tiles.offset.tolist() == [16]
            return sums

    axes = np.array([ROW_ENERGY, COLUMN_ENERGY, NO_ENERGY])
    table = Rectangles(np.array([0, 16, 32]), np.array([8, 8, 8]), np.array([2, 1, 1]), np.array([4, 4, 4]), axes)
    found = reduce(Two(chunks), data, data, table, "bf16")
    assert redone == [16]
    # Of no element the backend said that it is finite, so the rows of the first have no energy.
    np.testing.assert_array_equal(found.energies, [np.nan, np.nan, 0, 0, 0, 0])


@pytest.mark.parametrize("which", [np.array([2, 0]), np.array([True, False, True])], ids=["numbers", "mask"])
def test_some_of_the_rectangles(which: Any) -> None:
    columns = [np.arange(3) + 10 * number for number in range(5)]
    found = chosen(Rectangles(*columns), which)
    assert [column.tolist() for column in vars(found).values()] == [column[which].tolist() for column in columns]
