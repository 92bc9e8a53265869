"""Moments and column energies with Triton: CUDA, or the interpreter (TRITON_INTERPRET=1) on the CPU for tests.

The host sorts the work table by how the bytes may be loaded and by block size and launches once for each; a matrix of
a real checkpoint needs one launch. A chunk is read once and stays in registers. Given up: a chunk whose start is not a
multiple of 16 bytes is loaded element by element, one whose start is not a multiple of its element byte by byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from weightprint_kernels.layout import FLOAT32, INT64, ITEMSIZE, ROW_FIELDS, TILE_COLUMNS, UINT8, Chunks, Tiles
from weightprint_kernels.torch_backend import as_tensor
from weightprint_kernels.triton_kernels import column_energies_kernel, moments_kernel

FORMATS: dict[str, dict[str, int | bool]] = {
    "bf16": {"EXPONENT": 8, "MANTISSA": 7, "INFINITIES": True},
    "f16": {"EXPONENT": 5, "MANTISSA": 10, "INFINITIES": True},
    "f32": {"EXPONENT": 8, "MANTISSA": 23, "INFINITIES": True},
    "f8_e4m3": {"EXPONENT": 4, "MANTISSA": 3, "INFINITIES": False},
    "f8_e5m2": {"EXPONENT": 5, "MANTISSA": 2, "INFINITIES": True},
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}

BLOCKS = (1024, 2048, 4096, 8192)
STRIP_COLUMNS = 128
STRIP_WARPS = 8
WIDE = 16
"""Access of 128 bits. Narrower loads need an address each: a thread gets fewer elements to stay within 64 registers."""


class TritonBackend:
    """Triton on one CUDA device."""

    def __init__(self, device: str = "cuda:0") -> None:
        self.device = device
        self.name = "triton"

    def place(self, data: UINT8) -> torch.Tensor:
        """The bytes as a uint8 tensor on the device."""
        return as_tensor(data).to(self.device)

    def moments(self, buffer: torch.Tensor, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [n, 8]."""
        return _to_host(self.moments_there(buffer, chunks, dtype))

    def column_energies(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        return _to_host(self.column_energies_there(buffer, tiles, dtype))

    def moments_there(self, buffer: torch.Tensor, chunks: Chunks, dtype: str) -> torch.Tensor:
        """Partial rows, float32 [n, 8], on the device."""
        rows = torch.full((len(chunks), len(ROW_FIELDS)), torch.nan, device=self.device)
        access = _access(buffer, dtype, chunks.offset, chunks.count * ITEMSIZE[dtype])
        block = np.array(BLOCKS)[np.searchsorted(BLOCKS, chunks.count)]
        with self._current():
            for mode, size in sorted(set(zip(access.tolist(), block.tolist(), strict=True))):
                chosen = np.flatnonzero((access == mode) & (block == size))
                unit = 1 if mode == 1 else ITEMSIZE[dtype]
                table = [chunks.offset[chosen] // unit, chunks.count[chosen], chosen]
                moments_kernel[(len(chosen),)](
                    _view(buffer, unit),
                    self._table(table),
                    rows,
                    **moments_variant(dtype, mode, size),
                )
        return rows

    def column_energies_there(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> torch.Tensor:
        """Σ w² per column, float32 [n, TILE_COLUMNS], on the device."""
        sums = torch.full((len(tiles), TILE_COLUMNS), torch.nan, device=self.device)
        access = _access(buffer, dtype, tiles.offset, tiles.stride, tiles.columns * ITEMSIZE[dtype])
        with self._current():
            for mode in sorted(set(access.tolist())):
                chosen = np.flatnonzero(access == mode)
                unit = 1 if mode == 1 else ITEMSIZE[dtype]
                start, stride = tiles.offset[chosen] // unit, tiles.stride[chosen] // unit
                column_energies_kernel[(len(chosen), TILE_COLUMNS // STRIP_COLUMNS)](
                    _view(buffer, unit),
                    self._table([start, stride, tiles.rows[chosen], tiles.columns[chosen], chosen]),
                    sums,
                    **column_energies_variant(dtype, mode),
                )
        return sums

    def _table(self, columns: list[INT64]) -> torch.Tensor:
        table = torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))
        # Out of pinned memory the copy waits for nothing; the allocator keeps the memory until it is done.
        return table if self.device == "cpu" else table.pin_memory().to(self.device, non_blocking=True)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Triton launches on torch's current device."""
        with torch.cuda.device(self.device) if self.device != "cpu" else contextlib.nullcontext():
            yield


def moments_variant(dtype: str, access: int, block: int) -> dict[str, Any]:
    """Constants and warps of one compiled moments kernel."""
    warps = block // (512 if access == WIDE else 256)
    return {**FORMATS[dtype], "BLOCK": block, "ACCESS": access, "num_warps": warps}


def column_energies_variant(dtype: str, access: int) -> dict[str, Any]:
    """Constants and warps of one compiled column-energy kernel."""
    rows = 32 if access == WIDE else 8
    shape = (rows, STRIP_COLUMNS, TILE_COLUMNS)
    return {**FORMATS[dtype], "ACCESS": access, "SHAPE": shape, "num_warps": STRIP_WARPS}


def accesses(dtype: str) -> tuple[int, ...]:
    """Every way in which elements may be loaded: 16 bytes, one element or one byte at a time (see triton_kernels)."""
    return tuple(sorted({WIDE, ITEMSIZE[dtype], 1}, reverse=True))


def _access(buffer: torch.Tensor, dtype: str, *multiples: INT64) -> INT64:
    """The widest access that each piece's starts and lengths, in bytes, allow."""
    together: INT64 = np.bitwise_or.reduce(multiples) | (buffer.data_ptr() % WIDE)
    widest = np.ones_like(together)
    for access in reversed(accesses(dtype)):
        widest[together % access == 0] = access
    return widest


def _view(buffer: torch.Tensor, unit: int) -> torch.Tensor:
    """The bytes as integers of ``unit`` bytes."""
    return buffer[: len(buffer) // unit * unit].view(INTEGERS[unit])


def _to_host(values: torch.Tensor) -> FLOAT32:
    array: FLOAT32 = values.cpu().numpy()
    return array
