"""The float64 reference: what every other backend must reproduce. Plain numpy, slow, shares no helper with the others.

Decoding follows the formats' own definitions: IEEE 754 binary16 and binary32, bfloat16 as the upper half of a
binary32, and the OCP 8-bit formats E4M3 (no infinities, S.1111.111 is NaN) and E5M2 (IEEE-like).
"""

from __future__ import annotations

import numpy as np

from weightprint_kernels.layout import (
    FLOAT32,
    FLOAT64,
    ITEMSIZE,
    ROW_FIELDS,
    TILE_COLUMNS,
    UINT8,
    Chunks,
    Tiles,
)


class ReferenceBackend:
    """Float64 on the CPU, chunk by chunk."""

    name = "reference"
    device = "cpu"

    def place(self, data: UINT8) -> UINT8:
        """The bytes themselves."""
        return data

    def moments(self, buffer: UINT8, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [n, 8]."""
        with np.errstate(over="ignore"):
            return moments_float64(buffer, chunks, dtype).astype(np.float32)

    def column_energies(self, buffer: UINT8, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        with np.errstate(over="ignore"):
            return column_energies_float64(buffer, tiles, dtype).astype(np.float32)


def moments_float64(data: UINT8, chunks: Chunks, dtype: str) -> FLOAT64:
    """Partial rows in float64 [n, 8]; the shift is the mean of the chunk's finite elements."""
    rows = np.zeros((len(chunks), len(ROW_FIELDS)))
    for number, (offset, count) in enumerate(zip(chunks.offset.tolist(), chunks.count.tolist(), strict=True)):
        values = decode(data[offset : offset + count * ITEMSIZE[dtype]], dtype)
        finite = values[np.isfinite(values)]
        if len(finite):
            # float32, because that is how a row stores it.
            shift = float(np.float32(finite.mean()))
            d = finite - shift
            sums = [d.sum(), (d**2).sum(), (d**3).sum(), (d**4).sum()]
            rows[number] = [shift, *sums, np.abs(finite).max(), len(finite), (finite == 0).sum()]
    return rows


def column_energies_float64(data: UINT8, tiles: Tiles, dtype: str) -> FLOAT64:
    """Σ w² of each tile's columns in float64 [n, TILE_COLUMNS], zero beyond its columns."""
    sums = np.zeros((len(tiles), TILE_COLUMNS))
    for number in range(len(tiles)):
        offset, stride = int(tiles.offset[number]), int(tiles.stride[number])
        rows, columns = int(tiles.rows[number]), int(tiles.columns[number])
        for row in range(rows):
            start = offset + row * stride
            with np.errstate(invalid="ignore"):
                sums[number, :columns] += decode(data[start : start + columns * ITEMSIZE[dtype]], dtype) ** 2
    return sums


def decode(data: UINT8, dtype: str) -> FLOAT64:
    """Little-endian bytes to float64, exactly."""
    raw = np.ascontiguousarray(data)
    if dtype == "f32":
        return raw.view("<f4").astype(np.float64)
    if dtype == "f16":
        return raw.view("<f2").astype(np.float64)
    if dtype == "bf16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return _EIGHT_BITS[dtype][raw]


def _eight_bits(exponent_bits: int, bias: int, infinities: bool) -> FLOAT64:
    """The value of every code of an 8-bit float with ``exponent_bits`` and 7 - exponent_bits mantissa bits."""
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    normal = (1 + mantissa) * 2.0 ** (exponent - bias)
    values = sign * np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), normal)
    if infinities:
        special = exponent == 2**exponent_bits - 1
        values[special] = np.where(mantissa[special] == 0, sign[special] * np.inf, np.nan)
    else:
        values[(code & 0x7F) == 0x7F] = np.nan
    return values


_EIGHT_BITS = {
    "f8_e4m3": _eight_bits(exponent_bits=4, bias=7, infinities=False),
    "f8_e5m2": _eight_bits(exponent_bits=5, bias=15, infinities=True),
}
