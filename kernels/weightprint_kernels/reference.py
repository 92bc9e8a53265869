"""The float64 reference: what every other backend must reproduce. Plain numpy, slow, shares no helper with the others.

Values are decoded from the bits by the formats' own definitions: IEEE 754 binary16 and binary32, bfloat16 as the
upper half of a binary32, and the OCP 8-bit formats E4M3 (no infinities, S.1111.111 is NaN) and E5M2 (IEEE-like).
The float64 functions are also what redoes a chunk that float32 cannot hold; there is no overflow for any input.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightprint_kernels.layout import FLOAT32, FLOAT64, ITEMSIZE, ROW_FIELDS, TILE_COLUMNS, UINT8, Chunks, Tiles


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, then the exponent, then the mantissa."""

    exponent_bits: int
    mantissa_bits: int
    infinities: bool = True

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits


FORMATS = {
    "bf16": Format(exponent_bits=8, mantissa_bits=7),
    "f16": Format(exponent_bits=5, mantissa_bits=10),
    "f32": Format(exponent_bits=8, mantissa_bits=23),
    "f8_e4m3": Format(exponent_bits=4, mantissa_bits=3, infinities=False),
    "f8_e5m2": Format(exponent_bits=5, mantissa_bits=2),
}


class ReferenceBackend:
    """Float64 on the CPU, chunk by chunk; rows are rounded to float32 at the end."""

    name = "reference"
    device = "cpu"

    def place(self, data: UINT8) -> UINT8:
        """The bytes themselves."""
        return data

    def moments(self, buffer: UINT8, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [n, 8]."""
        with np.errstate(over="ignore", under="ignore"):
            return moments_float64(buffer, chunks, dtype).astype(np.float32)

    def column_energies(self, buffer: UINT8, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        with np.errstate(over="ignore", under="ignore"):
            return column_energies_float64(buffer, tiles, dtype).astype(np.float32)


def moments_float64(data: UINT8, chunks: Chunks, dtype: str) -> FLOAT64:
    """Partial rows in float64 [n, 8]; the shift is the mean of the chunk's finite elements, as float32 holds it."""
    rows = np.zeros((len(chunks), len(ROW_FIELDS)))
    for number, (offset, count) in enumerate(zip(chunks.offset.tolist(), chunks.count.tolist(), strict=True)):
        values = decode(data[offset : offset + count * ITEMSIZE[dtype]], dtype)
        finite = values[np.isfinite(values)]
        if len(finite):
            shift = float(np.float32(finite.mean()))
            d = finite - shift
            d2 = d * d
            sums = [d.sum(), d2.sum(), (d2 * d).sum(), (d2 * d2).sum()]
            rows[number] = [shift, *sums, np.abs(finite).max(), len(finite), (finite == 0).sum()]
    return rows


def column_energies_float64(data: UINT8, tiles: Tiles, dtype: str) -> FLOAT64:
    """Σ w² of each tile's columns in float64 [n, TILE_COLUMNS], zero beyond its columns."""
    sums = np.zeros((len(tiles), TILE_COLUMNS))
    for number in range(len(tiles)):
        offset, stride = int(tiles.offset[number]), int(tiles.stride[number])
        rows, columns = int(tiles.rows[number]), int(tiles.columns[number])
        width = columns * ITEMSIZE[dtype]
        raw = data[offset : offset + (rows - 1) * stride + width]
        tile = np.lib.stride_tricks.as_strided(raw, (rows, width), (stride, 1), writeable=False)
        values = decode(np.ascontiguousarray(tile).reshape(-1), dtype).reshape(rows, columns)
        with np.errstate(invalid="ignore"):
            sums[number, :columns] = (values * values).sum(axis=0)
    return sums


def decode(data: UINT8, dtype: str) -> FLOAT64:
    """Little-endian bytes to float64, exactly."""
    format = FORMATS[dtype]
    codes = np.ascontiguousarray(data).view(f"<u{format.bits // 8}")
    return _value_of(codes.astype(np.int64), format) if format.bits == 32 else value_table(dtype)[codes]


@functools.cache
def value_table(dtype: str) -> FLOAT64:
    """The value of every code of an 8-bit or 16-bit format."""
    return _value_of(np.arange(2 ** FORMATS[dtype].bits), FORMATS[dtype])


def _value_of(codes: npt.NDArray[np.int64], format: Format) -> FLOAT64:
    bias = 2 ** (format.exponent_bits - 1) - 1
    largest = 2**format.exponent_bits - 1
    exponent = (codes >> format.mantissa_bits) & largest
    fraction = (codes & (2**format.mantissa_bits - 1)) / 2**format.mantissa_bits
    magnitude = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - bias)
    if format.infinities:
        magnitude = np.where(exponent == largest, np.where(fraction == 0, np.inf, np.nan), magnitude)
    else:
        magnitude = np.where(codes & (2 ** (format.bits - 1) - 1) == 2 ** (format.bits - 1) - 1, np.nan, magnitude)
    values: FLOAT64 = np.where(codes >> (format.bits - 1), -magnitude, magnitude)
    return values
