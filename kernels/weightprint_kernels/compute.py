"""What the engine calls: a backend's float32 result, with what float32 cannot hold done again in float64.

float32 sums are not trusted where they overflowed (deviations above about 1e9, to the fourth power), and where the
spread is so small that its fourth power falls below float32's normal range. Exactly those chunks and tiles are redone
by the reference; a healthy matrix has none, and neither has a constant one.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from weightprint_kernels.backend import Backend, OnePassBackend
from weightprint_kernels.layout import (
    ABS_MAX,
    COLUMN_ENERGY,
    FLOAT64,
    INT64,
    ITEMSIZE,
    N_FINITE,
    ROW_ENERGY,
    S1,
    S2,
    S4,
    SHIFT,
    TILE_COLUMNS,
    TILE_ROWS,
    UINT8,
    Chunks,
    Rectangles,
    Reduced,
    Tiles,
    chunk_rectangles,
    chunks_per_row,
    spread,
    tile_rectangles,
    tiles_across,
)
from weightprint_kernels.merge import merge_groups, row_energies
from weightprint_kernels.reference import column_energies_float64, moments_float64

BOOL = npt.NDArray[np.bool_]

# Above this, the variance's square is a normal float32 number.
SMALLEST_VARIANCE = 1e-17
# Above this, two float32 numbers that differ do so by at least 3e-18, whose square float32 holds: a chunk without
# spread around such a shift is constant, and its sums are exact.
SMALLEST_CONSTANT = 1e-10
# Below this, squares that underflowed could be missing from a column's sum.
SMALLEST_ENERGY = 1e-30


def reduce(backend: Backend, data: UINT8, buffer: Any, rectangles: Rectangles, dtype: str) -> Reduced:
    """Moments and energies of rectangles: by the backend itself, or out of its partial rows and tiles.

    ``data`` are the host's bytes, ``buffer`` what ``backend.place`` made of them.
    """
    if hasattr(backend, "reduce"):  # to ask a protocol costs as much as all other Python of a slot
        return cast(OnePassBackend, backend).reduce(buffer, rectangles, dtype)
    chunks = chunk_rectangles(rectangles, ITEMSIZE[dtype])
    rows = moments_rows(backend, data, buffer, chunks, dtype)
    by_column = chosen(rectangles, rectangles.axis == COLUMN_ENERGY)
    tiles = tile_rectangles(by_column, ITEMSIZE[dtype])
    sums = column_energy_tiles(backend, data, buffer, tiles, dtype) if len(tiles) else np.zeros((0, TILE_COLUMNS))
    return reduced(rectangles, rows, chunks.count, sums)


def reduced(rectangles: Rectangles, rows: FLOAT64, counts: INT64, sums: FLOAT64) -> Reduced:
    """Merge what the kernels made of ``rectangles``: the rows of all their chunks, and of those with column energies
    the sums of their tiles."""
    per_row = chunks_per_row(rectangles.columns)
    starts = _starts(rectangles.rows * per_row)
    by_row, by_column = rectangles.axis == ROW_ENERGY, rectangles.axis == COLUMN_ENERGY
    units = rectangles.units()
    begins = _starts(units)
    energies = np.zeros(int(units.sum()))
    owner, within = spread(np.where(by_row, rectangles.rows, 0))
    if len(owner):
        place = begins[owner] + within
        every = np.repeat(by_row, rectangles.rows * per_row)
        first = _starts(per_row[owner])
        energies[place] = row_energies(rows[every], counts[every], first)
    done = 0
    for number in np.flatnonzero(by_column).tolist():
        across = int(tiles_across(rectangles.columns[number]))
        bands = -(-int(rectangles.rows[number]) // TILE_ROWS)
        own = sums[done : done + bands * across].reshape(bands, across * TILE_COLUMNS).sum(axis=0)
        done += bands * across
        start, columns = int(begins[number]), int(rectangles.columns[number])
        energies[start : start + columns] = own[:columns]
    return Reduced(merge_groups(rows, starts), energies)


def chosen(rectangles: Rectangles, which: INT64 | BOOL) -> Rectangles:
    """Some of the rectangles, by number or by mask."""
    whole = (rectangles.offset, rectangles.stride, rectangles.rows, rectangles.columns, rectangles.axis)
    return Rectangles(*(column[which] for column in whole))


def _starts(counts: INT64) -> INT64:
    """Where each of consecutive groups of these sizes begins."""
    return np.cumsum(counts) - counts


def moments_rows(backend: Backend, data: UINT8, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT64:
    """Partial rows in float64 [n, 8]. ``data`` are the host's bytes, ``buffer`` what ``backend.place`` made of them."""
    rows = backend.moments(buffer, chunks, dtype).astype(np.float64)
    again = np.flatnonzero(~trusted_rows(rows))
    if len(again):
        rows[again] = moments_float64(data, Chunks(chunks.offset[again], chunks.count[again]), dtype)
    return rows


def trusted_rows(rows: FLOAT64) -> BOOL:
    """Which float32 rows hold what they should, bool [n]."""
    spread = rows[:, S2]
    with np.errstate(invalid="ignore", divide="ignore"):
        spread_out = spread / rows[:, N_FINITE] > SMALLEST_VARIANCE
    constant = (spread == 0) & (np.abs(rows[:, SHIFT]) > SMALLEST_CONSTANT)
    empty = rows[:, N_FINITE] == 0
    zero = rows[:, ABS_MAX] == 0
    finite = np.isfinite(rows[:, SHIFT]) & np.isfinite(rows[:, S1 : S4 + 1]).all(axis=1)
    trusted: BOOL = finite & (spread_out | constant | empty | zero)
    return trusted


def column_energy_tiles(backend: Backend, data: UINT8, buffer: Any, tiles: Tiles, dtype: str) -> FLOAT64:
    """Σ w² per column in float64 [n, TILE_COLUMNS]; nan for a column that holds a NaN or an infinity."""
    sums = backend.column_energies(buffer, tiles, dtype).astype(np.float64)
    again = np.flatnonzero(~trusted_tiles(sums, tiles))
    if len(again):
        some = Tiles(tiles.offset[again], tiles.stride[again], tiles.rows[again], tiles.columns[again])
        sums[again] = column_energies_float64(data, some, dtype)
    sums[~np.isfinite(sums)] = np.nan
    return sums


def trusted_tiles(sums: FLOAT64, tiles: Tiles) -> BOOL:
    """Which float32 tiles hold what they should, bool [n]."""
    inside = np.arange(sums.shape[1])[None, :] < tiles.columns[:, None]
    with np.errstate(invalid="ignore"):
        # A sum of zero is not: squares that all underflowed look the same as zeros.
        trusted = np.isfinite(sums) & (sums > SMALLEST_ENERGY)
    return np.asarray((trusted | ~inside).all(axis=1))
