"""What the engine calls: a backend's float32 result, with what float32 cannot hold done again in float64.

float32 sums are not trusted where they overflowed (|w| above about 1e9 to the fourth power), where the fourth power
of the spread falls below float32's normal range, and where a whole chunk came out without spread though it is not
zero. Exactly those chunks and tiles are redone by the reference; a healthy matrix has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weightprint_kernels.backend import Backend
from weightprint_kernels.layout import (
    ABS_MAX,
    FLOAT64,
    N_FINITE,
    S1,
    S2,
    S4,
    UINT8,
    Chunks,
    Tiles,
)
from weightprint_kernels.reference import column_energies_float64, moments_float64

# Between these, the variance's square and its sum over a chunk stay normal float32 numbers.
SMALLEST_VARIANCE = 1e-17
LARGEST_VARIANCE = 1e17
SMALLEST_ENERGY = 1e-30


def moments_rows(backend: Backend, data: UINT8, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT64:
    """Partial rows in float64 [n, 8]. ``data`` are the host's bytes, ``buffer`` what ``backend.place`` made of them."""
    rows = backend.moments(buffer, chunks, dtype).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = rows[:, S2] / rows[:, N_FINITE]
        trusted = (variance > SMALLEST_VARIANCE) & (variance < LARGEST_VARIANCE)
        trusted &= np.isfinite(rows[:, S1 : S4 + 1]).all(axis=1)
    trusted |= (rows[:, N_FINITE] == 0) | (rows[:, ABS_MAX] == 0)
    again = np.flatnonzero(~trusted)
    if len(again):
        rows[again] = moments_float64(data, Chunks(chunks.offset[again], chunks.count[again]), dtype)
    return rows


def column_energy_tiles(backend: Backend, data: UINT8, buffer: Any, tiles: Tiles, dtype: str) -> FLOAT64:
    """Σ w² per column in float64 [n, TILE_COLUMNS]; nan for a column that holds a NaN or an infinity."""
    sums = backend.column_energies(buffer, tiles, dtype).astype(np.float64)
    trusted = np.isfinite(sums) & ((sums > SMALLEST_ENERGY) | (sums == 0))
    # A column of zeros is exact; one whose squares all underflowed looks the same, and is told apart by redoing it.
    inside = np.arange(sums.shape[1])[None, :] < tiles.columns[:, None]
    again = np.flatnonzero(~(trusted & ((sums != 0) | ~inside)).all(axis=1))
    if len(again):
        chosen = Tiles(tiles.offset[again], tiles.stride[again], tiles.rows[again], tiles.columns[again])
        sums[again] = column_energies_float64(data, chosen, dtype)
    sums[~np.isfinite(sums)] = np.nan
    return sums
