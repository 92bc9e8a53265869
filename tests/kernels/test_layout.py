"""Work tables cover every element of a matrix once, in order, in pieces of the promised size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightprint_kernels.layout import (
    CHUNK_ELEMENTS,
    COLUMN_ENERGY,
    INT64,
    NO_ENERGY,
    ROW_ENERGY,
    TILE_COLUMNS,
    TILE_ROWS,
    Rectangles,
    chunk_rectangles,
    chunks_per_row,
    rectangle,
    spread,
    tile_rectangles,
    tiles_across,
)

LAW = settings(deadline=None, derandomize=True, max_examples=60)
OFFSETS = st.integers(0, 2**45)
GAPS = st.sampled_from((0, 1, 2, 16, 2**33))
ITEMSIZES = st.sampled_from((1, 2, 4))


def near(lowest: int, edge: int) -> st.SearchStrategy[int]:
    """Sizes from ``lowest`` to beyond twice the edge, those beside an edge more often."""
    beside = [place + step for place in (edge, 2 * edge) for step in (-1, 0, 1)]
    return st.one_of(st.integers(lowest, 2 * edge + 100), st.sampled_from([lowest, *beside]))


def elements(offset: int, rows: int, columns: int, stride: int, itemsize: int) -> INT64:
    """Byte offsets of a matrix's elements, row by row."""
    down, across = np.arange(rows, dtype=np.int64), np.arange(columns, dtype=np.int64)
    return offset + (down[:, None] * stride + across[None, :] * itemsize).reshape(-1)


def joined(pieces: list[INT64]) -> INT64:
    return np.concatenate([np.zeros(0, np.int64), *pieces])


@LAW
@given(OFFSETS, st.integers(0, 5), near(0, CHUNK_ELEMENTS), GAPS, ITEMSIZES)
def test_chunks_hold_every_element_once_in_order(offset: int, rows: int, columns: int, gap: int, itemsize: int) -> None:
    stride = columns * itemsize + gap
    chunks = chunk_rectangles(rectangle(offset, rows, columns, stride), itemsize)
    pieces = [
        elements(o, 1, c, 0, itemsize) for o, c in zip(chunks.offset.tolist(), chunks.count.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(joined(pieces), elements(offset, rows, columns, stride, itemsize))


@LAW
@given(OFFSETS, st.integers(1, 5), near(1, CHUNK_ELEMENTS), GAPS, ITEMSIZES)
def test_chunks_are_full_but_the_last_of_a_row(offset: int, rows: int, columns: int, gap: int, itemsize: int) -> None:
    chunks = chunk_rectangles(rectangle(offset, rows, columns, columns * itemsize + gap), itemsize)
    by_row = chunks.count.reshape(rows, -(-columns // CHUNK_ELEMENTS))
    assert (by_row[:, :-1] == CHUNK_ELEMENTS).all()
    assert ((by_row[:, -1] > 0) & (by_row[:, -1] <= CHUNK_ELEMENTS)).all()
    # A chunk that crossed a row would make a row's sum differ.
    assert (by_row.sum(axis=1) == columns).all()
    assert chunks.offset.dtype == chunks.count.dtype == np.int64


@LAW
@given(OFFSETS, near(0, TILE_ROWS), near(0, TILE_COLUMNS), GAPS, ITEMSIZES)
def test_tiles_hold_every_element_once(offset: int, rows: int, columns: int, gap: int, itemsize: int) -> None:
    stride = columns * itemsize + gap
    tiles = tile_rectangles(rectangle(offset, rows, columns, stride), itemsize)
    table = zip(*(field.tolist() for field in (tiles.offset, tiles.rows, tiles.columns, tiles.stride)), strict=True)
    pieces = [elements(*tile, itemsize) for tile in table]
    np.testing.assert_array_equal(np.sort(joined(pieces)), elements(offset, rows, columns, stride, itemsize))
    assert (tiles.stride == stride).all()
    assert ((tiles.rows > 0) & (tiles.rows <= TILE_ROWS)).all()
    assert ((tiles.columns > 0) & (tiles.columns <= TILE_COLUMNS)).all()


def test_tiles_run_band_by_band_from_left_to_right() -> None:
    tiles = tile_rectangles(rectangle(10, TILE_ROWS + 1, TILE_COLUMNS + 2, 4096), 2)
    assert tiles.offset.tolist() == [10, 10 + 1024, 10 + 256 * 4096, 10 + 256 * 4096 + 1024]
    assert tiles.rows.tolist() == [256, 256, 1, 1]
    assert tiles.columns.tolist() == [512, 2, 512, 2]


@pytest.mark.parametrize(("columns", "chunks"), [(0, 0), (1, 1), (8191, 1), (8192, 1), (8193, 2), (16_385, 3)])
def test_chunks_of_a_row(columns: int, chunks: int) -> None:
    assert chunks_per_row(np.array([columns])).tolist() == [chunks]
    assert len(chunk_rectangles(rectangle(0, 1, columns, 2 * columns), 2)) == chunks


@pytest.mark.parametrize(("columns", "tiles"), [(0, 0), (1, 1), (511, 1), (512, 1), (513, 2), (1025, 3)])
def test_tiles_over_a_row(columns: int, tiles: int) -> None:
    assert tiles_across(np.array([columns])).tolist() == [tiles]
    assert len(tile_rectangles(rectangle(0, 1, columns, 2 * columns), 2)) == tiles


def test_chunks_of_several_rectangles_come_one_after_the_other() -> None:
    both = chunk_rectangles(table((5, 2, 10, 40), (900, 1, 8193, 0)), 4)
    assert both.offset.tolist() == [5, 45, 900, 900 + 4 * 8192]
    assert both.count.tolist() == [10, 10, 8192, 1]


def test_tiles_of_several_rectangles_come_one_after_the_other() -> None:
    tiles = tile_rectangles(table((0, 3, 600, 1200), (7, 257, 4, 4)), 1)
    assert tiles.offset.tolist() == [0, 512, 7, 7 + 1024]
    assert tiles.stride.tolist() == [1200, 1200, 4, 4]
    assert tiles.rows.tolist() == [3, 3, 256, 1]
    assert tiles.columns.tolist() == [512, 88, 4, 4]


def table(*rectangles: tuple[int, int, int, int]) -> Rectangles:
    """Of (offset, rows, columns, stride)."""
    offset, rows, columns, stride = np.array(rectangles, np.int64).reshape(-1, 4).T
    return Rectangles(offset, stride, rows, columns, np.zeros(len(rectangles), np.int64))


RECTANGLES = st.lists(
    st.tuples(OFFSETS, st.integers(0, 300), near(0, TILE_COLUMNS), st.sampled_from((0, 7, 2**33))), max_size=4
)


@LAW
@given(RECTANGLES, ITEMSIZES)
def test_a_table_of_several_is_the_tables_of_each(rectangles: list[tuple[int, int, int, int]], itemsize: int) -> None:
    whole = table(*rectangles)
    alone = [rectangle(*one) for one in rectangles]
    for cut in (chunk_rectangles, tile_rectangles):
        found, parts = vars(cut(whole, itemsize)), [vars(cut(one, itemsize)) for one in alone]
        for name, column in found.items():
            assert column.dtype == np.int64
            np.testing.assert_array_equal(column, joined([part[name] for part in parts]))


def test_no_rectangle_gives_empty_tables() -> None:
    for cut in (chunk_rectangles(table(), 2), tile_rectangles(table(), 2)):
        assert len(cut) == 0
        assert cut.offset.dtype == np.int64


def test_a_rectangle_is_a_table_of_one() -> None:
    one = rectangle(3, 4, 5, 60, COLUMN_ENERGY)
    assert [column.tolist() for column in vars(one).values()] == [[3], [60], [4], [5], [COLUMN_ENERGY]]
    assert rectangle(3, 4, 5, 60).axis.tolist() == [NO_ENERGY]
    assert len(one) == 1


@pytest.mark.parametrize(
    ("counts", "owner", "within"),
    [([2, 1], [0, 0, 1], [0, 1, 0]), ([0, 3, 0, 1], [1, 1, 1, 3], [0, 1, 2, 0]), ([], [], []), ([0], [], [])],
)
def test_spread(counts: list[int], owner: list[int], within: list[int]) -> None:
    assert [column.tolist() for column in spread(np.array(counts, np.int64))] == [owner, within]


def test_how_many_energies_rectangles_give() -> None:
    axis = np.array([NO_ENERGY, ROW_ENERGY, COLUMN_ENERGY])
    table = Rectangles(np.zeros(3, np.int64), np.zeros(3, np.int64), np.array([2, 3, 4]), np.array([5, 6, 7]), axis)
    assert table.units().tolist() == [0, 3, 7]
