"""The backend of the CPU: one pass over the bytes by code that Numba compiles for this processor.

Beside partial rows it reduces whole rectangles, which is what a scan calls: moments, row and column energies in the
same visit to the bytes, merged in float64, without a row of results per chunk. Any number of threads may call it.
"""

from __future__ import annotations

import functools

import numpy as np

from weightprint_kernels import numba_kernels
from weightprint_kernels.layout import (
    FLOAT32,
    ITEMSIZE,
    MOMENT_FIELDS,
    ROW_FIELDS,
    TILE_COLUMNS,
    UINT8,
    Chunks,
    Rectangles,
    Reduced,
    Tiles,
)
from weightprint_kernels.line_sums import SCALE, block_lines, line_order, tag
from weightprint_kernels.reference import FORMATS, value_table


class NumbaBackend:
    """Compiled loops on the CPU."""

    name = "numba"
    device = "cpu"

    def place(self, data: UINT8) -> UINT8:
        """The bytes themselves, mapped, and as the compiled code knows them: not to be written."""
        view: UINT8 = data.view()
        view.flags.writeable = False
        numba_kernels.touch(view)
        return view

    def moments(self, buffer: UINT8, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [n, 8]."""
        rows = np.empty((len(chunks), len(ROW_FIELDS)), np.float32)
        numba_kernels.moments_of_chunks(buffer, chunks.offset, chunks.count, form(dtype), rows)
        return rows

    def column_energies(self, buffer: UINT8, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        sums = np.empty((len(tiles), TILE_COLUMNS), np.float32)
        table = (tiles.offset, tiles.stride, tiles.rows, tiles.columns)
        numba_kernels.energies_of_tiles(buffer, *table, form(dtype), sums)
        return sums

    def reduce(self, buffer: UINT8, rectangles: Rectangles, dtype: str) -> Reduced:
        """Merged moments and energies of rectangles."""
        table = (rectangles.offset, rectangles.stride, rectangles.rows, rectangles.columns, rectangles.axis)
        moments = np.empty((len(rectangles), len(MOMENT_FIELDS)))
        energies = np.empty(int(rectangles.units().sum()))
        numba_kernels.reduce_rectangles(buffer, np.stack(table, axis=1), form(dtype), moments, energies)
        return Reduced(moments, energies)


@functools.cache
def form(dtype: str) -> numba_kernels.Form:
    """What the kernels must know of a format."""
    format = FORMATS[dtype]
    largest = (1 << (format.bits - 1)) - 1
    infinity = ((1 << format.exponent_bits) - 1) << format.mantissa_bits
    return numba_kernels.Form(
        tag=tag(dtype),
        itemsize=ITEMSIZE[dtype],
        magnitude=largest,
        special=infinity if format.infinities else largest,
        scale=SCALE[dtype],
        table=value_table(dtype) if format.bits < 32 else np.zeros(0),
        order=line_order(dtype),
        block=block_lines(dtype),
    )
