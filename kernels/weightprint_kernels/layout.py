"""Partial rows and work tables: the one layout that every kernel reads and writes.

A kernel takes raw little-endian bytes and a work table and writes partial rows. It knows no file, no tensor
name and no model. Nothing here imports torch or triton, so that tables can be planned without them.

Partial row, eight float32 per chunk of at most ``CHUNK_ELEMENTS`` elements (columns of ``ROW_FIELDS``):
``shift`` K near the chunk's mean, ``s1..s4`` with Sk = Σ (w - K)^k over the finite w, ``abs_max`` over the finite
w, ``n_finite`` and ``n_zero`` (both signs of zero). A chunk never crosses a row of a matrix, so Σ w² of a row is a
by-product of its chunks.

Column tile: at most ``TILE_ROWS`` x ``TILE_COLUMNS`` elements of a matrix; the kernel writes Σ w² of each column
as float32 [TILE_COLUMNS], zero beyond the tile's own columns. Non-finite values are *not* masked there: a column
that holds one gets a non-finite energy, which is how the unit is later left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK_ELEMENTS = 8192
TILE_ROWS = 256
TILE_COLUMNS = 512

ROW_FIELDS = ("shift", "s1", "s2", "s3", "s4", "abs_max", "n_finite", "n_zero")
SHIFT, S1, S2, S3, S4, ABS_MAX, N_FINITE, N_ZERO = range(8)

ITEMSIZE: dict[str, int] = {"bf16": 2, "f16": 2, "f32": 4, "f8_e4m3": 1, "f8_e5m2": 1}
"""Bytes per element of every encoding that a kernel decodes; f8_e4m3 is the "fn" variant (no infinities)."""

UINT8 = npt.NDArray[np.uint8]
INT64 = npt.NDArray[np.int64]
FLOAT32 = npt.NDArray[np.float32]
FLOAT64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chunks:
    """Work table of the moments kernel: byte offset into the buffer and element count of each chunk, both [n]."""

    offset: INT64
    count: INT64

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class Tiles:
    """Work table of the column-energy kernel, all [n].

    ``offset`` is the byte offset of the tile's first element, ``stride`` the bytes from one matrix row to the
    next, ``rows`` <= TILE_ROWS and ``columns`` <= TILE_COLUMNS its size.
    """

    offset: INT64
    stride: INT64
    rows: INT64
    columns: INT64

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class Rectangles:
    """Parts of matrices inside a buffer, all [n].

    ``offset`` is the byte offset of the first element, ``stride`` the bytes from one row to the next, ``rows`` and
    ``columns`` the size. ``axis`` says whose Σ w² is wanted: NO_ENERGY, ROW_ENERGY or COLUMN_ENERGY.
    """

    offset: INT64
    stride: INT64
    rows: INT64
    columns: INT64
    axis: INT64

    def __len__(self) -> int:
        return len(self.offset)

    def units(self) -> INT64:
        """How many energies each rectangle gives, int64 [n]."""
        of_rows = np.where(self.axis == ROW_ENERGY, self.rows, 0)
        return np.where(self.axis == COLUMN_ENERGY, self.columns, of_rows)


NO_ENERGY, ROW_ENERGY, COLUMN_ENERGY = range(3)

MOMENT_FIELDS = ("n_finite", "mean", "m2", "m3", "m4", "abs_max", "zeros")


@dataclass(frozen=True)
class Reduced:
    """What rectangles were reduced to.

    ``moments`` are float64 [n, 7], columns as in MOMENT_FIELDS, M2 to M4 not divided by the count, all zero where
    nothing is finite. ``energies``, float64, are those of one rectangle after the other: of its rows, its columns, or
    none; nan where a value is not finite.
    """

    moments: FLOAT64
    energies: FLOAT64


def chunk_rectangles(rectangles: Rectangles, itemsize: int) -> Chunks:
    """Chunks of rectangles, one after the other, row by row.

    Every row gives ``chunks_per_row(columns)`` chunks, in order, all full but the last.
    """
    per_row = chunks_per_row(rectangles.columns)
    owner, within = spread(rectangles.rows * per_row)
    row, start = within // per_row[owner], within % per_row[owner] * CHUNK_ELEMENTS
    return Chunks(
        rectangles.offset[owner] + row * rectangles.stride[owner] + start * itemsize,
        np.minimum(rectangles.columns[owner] - start, CHUNK_ELEMENTS),
    )


def chunks_per_row(columns: INT64) -> INT64:
    """How many chunks a row of so many elements is cut into."""
    return -(-columns // CHUNK_ELEMENTS)


def tile_rectangles(rectangles: Rectangles, itemsize: int) -> Tiles:
    """Tiles of rectangles, one after the other, band by band of TILE_ROWS rows, left to right inside a band."""
    across = tiles_across(rectangles.columns)
    owner, within = spread(-(-rectangles.rows // TILE_ROWS) * across)
    top, left = within // across[owner] * TILE_ROWS, within % across[owner] * TILE_COLUMNS
    stride = rectangles.stride[owner]
    return Tiles(
        offset=rectangles.offset[owner] + top * stride + left * itemsize,
        stride=stride,
        rows=np.minimum(rectangles.rows[owner] - top, TILE_ROWS),
        columns=np.minimum(rectangles.columns[owner] - left, TILE_COLUMNS),
    )


def tiles_across(columns: INT64) -> INT64:
    """How many tiles lie side by side over so many columns."""
    return -(-columns // TILE_COLUMNS)


def rectangle(offset: int, rows: int, columns: int, stride: int, axis: int = NO_ENERGY) -> Rectangles:
    """A table of one rectangle."""
    return Rectangles(*(np.array([value], np.int64) for value in (offset, stride, rows, columns, axis)))


def spread(counts: INT64) -> tuple[INT64, INT64]:
    """For counts [2, 1]: the owner of each of the three, [0, 0, 1], and its number there, [0, 1, 0]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
