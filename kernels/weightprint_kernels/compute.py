"""What the engine calls: a backend's float32 result, with what float32 cannot hold done again in float64.

float32 sums are not trusted where they overflowed (deviations above about 1e9, to the fourth power), and where the
spread is so small that its fourth power falls below float32's normal range. Exactly those chunks and tiles are redone
by the reference; a healthy matrix has none, and neither has a constant one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weightprint_kernels.backend import Backend
from weightprint_kernels.layout import ABS_MAX, FLOAT64, N_FINITE, S1, S2, S4, SHIFT, UINT8, Chunks, Tiles
from weightprint_kernels.reference import column_energies_float64, moments_float64

# Above this, the variance's square is a normal float32 number.
SMALLEST_VARIANCE = 1e-17
# Above this, two float32 numbers that differ do so by at least 3e-18, whose square float32 holds: a chunk without
# spread around such a shift is constant, and its sums are exact.
SMALLEST_CONSTANT = 1e-10
# Below this, squares that underflowed could be missing from a column's sum.
SMALLEST_ENERGY = 1e-30


def moments_rows(backend: Backend, data: UINT8, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT64:
    """Partial rows in float64 [n, 8]. ``data`` are the host's bytes, ``buffer`` what ``backend.place`` made of them."""
    rows = backend.moments(buffer, chunks, dtype).astype(np.float64)
    again = np.flatnonzero(~trusted_rows(rows))
    if len(again):
        rows[again] = moments_float64(data, Chunks(chunks.offset[again], chunks.count[again]), dtype)
    return rows


def trusted_rows(rows: FLOAT64) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which float32 rows hold what they should, bool [n]."""
    spread = rows[:, S2]
    with np.errstate(invalid="ignore", divide="ignore"):
        spread_out = spread / rows[:, N_FINITE] > SMALLEST_VARIANCE
    constant = (spread == 0) & (np.abs(rows[:, SHIFT]) > SMALLEST_CONSTANT)
    empty = rows[:, N_FINITE] == 0
    zero = rows[:, ABS_MAX] == 0
    finite = np.isfinite(rows[:, SHIFT]) & np.isfinite(rows[:, S1 : S4 + 1]).all(axis=1)
    trusted: np.ndarray[Any, np.dtype[np.bool_]] = finite & (spread_out | constant | empty | zero)
    return trusted


def column_energy_tiles(backend: Backend, data: UINT8, buffer: Any, tiles: Tiles, dtype: str) -> FLOAT64:
    """Σ w² per column in float64 [n, TILE_COLUMNS]; nan for a column that holds a NaN or an infinity."""
    sums = backend.column_energies(buffer, tiles, dtype).astype(np.float64)
    inside = np.arange(sums.shape[1])[None, :] < tiles.columns[:, None]
    with np.errstate(invalid="ignore"):
        # A sum of zero is redone too: squares that all underflowed look the same as zeros.
        trusted = np.isfinite(sums) & (sums > SMALLEST_ENERGY)
    again = np.flatnonzero((inside & ~trusted).any(axis=1))
    if len(again):
        chosen = Tiles(tiles.offset[again], tiles.stride[again], tiles.rows[again], tiles.columns[again])
        sums[again] = column_energies_float64(data, chosen, dtype)
    sums[~np.isfinite(sums)] = np.nan
    return sums
