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


def chunk_matrix(offset: int, rows: int, columns: int, stride: int, itemsize: int) -> Chunks:
    """Chunks of ``rows`` x ``columns`` elements whose rows lie ``stride`` bytes apart, row by row.

    Every row gives ``chunks_per_row(columns)`` chunks, in order, all full but the last.
    """
    per_row = chunks_per_row(columns)
    starts = np.arange(per_row, dtype=np.int64) * CHUNK_ELEMENTS
    counts = np.minimum(columns - starts, CHUNK_ELEMENTS)
    row_offsets = offset + np.arange(rows, dtype=np.int64) * stride
    offsets = (row_offsets[:, None] + starts[None, :] * itemsize).reshape(-1)
    return Chunks(offsets, np.tile(counts, rows))


def chunks_per_row(columns: int) -> int:
    """How many chunks one matrix row of ``columns`` elements is cut into."""
    return -(-columns // CHUNK_ELEMENTS)


def tile_matrix(offset: int, rows: int, columns: int, stride: int, itemsize: int) -> Tiles:
    """Tiles of a matrix, band by band of TILE_ROWS rows, left to right inside a band."""
    row_starts = np.arange(0, rows, TILE_ROWS, dtype=np.int64)
    column_starts = np.arange(0, columns, TILE_COLUMNS, dtype=np.int64)
    top, left = (grid.reshape(-1) for grid in np.meshgrid(row_starts, column_starts, indexing="ij"))
    return Tiles(
        offset=offset + top * stride + left * itemsize,
        stride=np.full(len(top), stride, dtype=np.int64),
        rows=np.minimum(rows - top, TILE_ROWS),
        columns=np.minimum(columns - left, TILE_COLUMNS),
    )


def join_chunks(tables: list[Chunks]) -> Chunks:
    """One work table out of several, in order."""
    return Chunks(
        np.concatenate([table.offset for table in tables]) if tables else np.zeros(0, np.int64),
        np.concatenate([table.count for table in tables]) if tables else np.zeros(0, np.int64),
    )


def join_tiles(tables: list[Tiles]) -> Tiles:
    """One work table out of several, in order."""
    if not tables:
        empty = np.zeros(0, np.int64)
        return Tiles(empty, empty, empty, empty)
    return Tiles(
        np.concatenate([table.offset for table in tables]),
        np.concatenate([table.stride for table in tables]),
        np.concatenate([table.rows for table in tables]),
        np.concatenate([table.columns for table in tables]),
    )
