"""Work tables cover every element of a matrix once, in order, in pieces of the promised size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightprint_kernels.layout import (
    CHUNK_ELEMENTS,
    INT64,
    TILE_COLUMNS,
    TILE_ROWS,
    Chunks,
    Tiles,
    chunk_matrix,
    chunks_per_row,
    join_chunks,
    join_tiles,
    tile_matrix,
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
    chunks = chunk_matrix(offset, rows, columns, stride, itemsize)
    pieces = [
        elements(o, 1, c, 0, itemsize) for o, c in zip(chunks.offset.tolist(), chunks.count.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(joined(pieces), elements(offset, rows, columns, stride, itemsize))


@LAW
@given(OFFSETS, st.integers(1, 5), near(1, CHUNK_ELEMENTS), GAPS, ITEMSIZES)
def test_chunks_are_full_but_the_last_of_a_row(offset: int, rows: int, columns: int, gap: int, itemsize: int) -> None:
    chunks = chunk_matrix(offset, rows, columns, columns * itemsize + gap, itemsize)
    by_row = chunks.count.reshape(rows, chunks_per_row(columns))
    assert (by_row[:, :-1] == CHUNK_ELEMENTS).all()
    assert ((by_row[:, -1] > 0) & (by_row[:, -1] <= CHUNK_ELEMENTS)).all()
    # A chunk that crossed a row would make a row's sum differ.
    assert (by_row.sum(axis=1) == columns).all()
    assert chunks.offset.dtype == chunks.count.dtype == np.int64


@LAW
@given(OFFSETS, near(0, TILE_ROWS), near(0, TILE_COLUMNS), GAPS, ITEMSIZES)
def test_tiles_hold_every_element_once(offset: int, rows: int, columns: int, gap: int, itemsize: int) -> None:
    stride = columns * itemsize + gap
    tiles = tile_matrix(offset, rows, columns, stride, itemsize)
    table = zip(*(field.tolist() for field in (tiles.offset, tiles.rows, tiles.columns, tiles.stride)), strict=True)
    pieces = [elements(*tile, itemsize) for tile in table]
    np.testing.assert_array_equal(np.sort(joined(pieces)), elements(offset, rows, columns, stride, itemsize))
    assert (tiles.stride == stride).all()
    assert ((tiles.rows > 0) & (tiles.rows <= TILE_ROWS)).all()
    assert ((tiles.columns > 0) & (tiles.columns <= TILE_COLUMNS)).all()


def test_tiles_run_band_by_band_from_left_to_right() -> None:
    tiles = tile_matrix(10, TILE_ROWS + 1, TILE_COLUMNS + 2, 4096, 2)
    assert tiles.offset.tolist() == [10, 10 + 1024, 10 + 256 * 4096, 10 + 256 * 4096 + 1024]
    assert tiles.rows.tolist() == [256, 256, 1, 1]
    assert tiles.columns.tolist() == [512, 2, 512, 2]


@pytest.mark.parametrize(("columns", "chunks"), [(0, 0), (1, 1), (8191, 1), (8192, 1), (8193, 2), (16_385, 3)])
def test_chunks_of_a_row(columns: int, chunks: int) -> None:
    assert chunks_per_row(columns) == chunks == len(chunk_matrix(0, 1, columns, 2 * columns, 2))


def test_tables_join_in_order() -> None:
    first, second = chunk_matrix(5, 2, 10, 20, 2), chunk_matrix(900, 1, 8193, 0, 4)
    both = join_chunks([first, second])
    assert both.offset.tolist() == [5, 25, 900, 900 + 4 * 8192]
    assert both.count.tolist() == [10, 10, 8192, 1]
    upper, lower = tile_matrix(0, 3, 600, 1200, 2), tile_matrix(7, 257, 4, 4, 1)
    tiles = join_tiles([upper, lower])
    assert tiles.offset.tolist() == [0, 1024, 7, 7 + 1024]
    assert tiles.stride.tolist() == [1200, 1200, 4, 4]
    assert tiles.rows.tolist() == [3, 3, 256, 1]
    assert tiles.columns.tolist() == [512, 88, 4, 4]


@pytest.mark.parametrize("table", [join_chunks([]), join_tiles([])], ids=["chunks", "tiles"])
def test_no_tables_join_to_an_empty_one(table: Chunks | Tiles) -> None:
    assert len(table) == 0
    assert table.offset.dtype == np.int64
