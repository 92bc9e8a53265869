"""Moments and column energies with Triton: CUDA, or the interpreter (TRITON_INTERPRET=1) on the CPU for tests.

The host sorts the work table by how the bytes may be loaded and by block size and launches once for each; a matrix of
a real checkpoint needs one launch. A chunk is read once and stays in registers. Given up: a chunk whose start is not a
multiple of 16 bytes is loaded element by element, one whose start is not a multiple of its element byte by byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
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

SMALLEST_BLOCK = 1024
ELEMENTS_PER_WARP = 512
STRIP_SHAPE = (32, 128, TILE_COLUMNS)
STRIP_WARPS = 8


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
        rows = torch.full((len(chunks), len(ROW_FIELDS)), torch.nan, device=self.device)
        access = _access(buffer, dtype, chunks.offset, chunks.count * ITEMSIZE[dtype])
        block = block_sizes(chunks.count)
        with self._current():
            for mode, size in sorted(set(zip(access.tolist(), block.tolist(), strict=True))):
                chosen = np.flatnonzero((access == mode) & (block == size))
                unit = 1 if mode == 1 else ITEMSIZE[dtype]
                table = [chunks.offset[chosen] // unit, chunks.count[chosen], chosen]
                moments_kernel[(len(chosen),)](
                    _view(buffer, unit),
                    self._table(table),
                    rows,
                    **FORMATS[dtype],
                    BLOCK=size,
                    ACCESS=mode,
                    num_warps=size // ELEMENTS_PER_WARP,
                )
        return _to_host(rows)

    def column_energies(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        sums = torch.full((len(tiles), TILE_COLUMNS), torch.nan, device=self.device)
        access = _access(buffer, dtype, tiles.offset, tiles.stride, tiles.columns * ITEMSIZE[dtype])
        with self._current():
            for mode in sorted(set(access.tolist())):
                chosen = np.flatnonzero(access == mode)
                unit = 1 if mode == 1 else ITEMSIZE[dtype]
                start, stride = tiles.offset[chosen] // unit, tiles.stride[chosen] // unit
                column_energies_kernel[(len(chosen), TILE_COLUMNS // STRIP_SHAPE[1])](
                    _view(buffer, unit),
                    self._table([start, stride, tiles.rows[chosen], tiles.columns[chosen], chosen]),
                    sums,
                    **FORMATS[dtype],
                    ACCESS=mode,
                    SHAPE=STRIP_SHAPE,
                    num_warps=STRIP_WARPS,
                )
        return _to_host(sums)

    def _table(self, columns: list[INT64]) -> torch.Tensor:
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64)).to(self.device)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Triton launches on torch's current device."""
        with torch.cuda.device(self.device) if self.device != "cpu" else contextlib.nullcontext():
            yield


def block_sizes(counts: INT64) -> INT64:
    """The power of two that holds each chunk."""
    sizes: INT64 = np.maximum(2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64), SMALLEST_BLOCK)
    return sizes


def _access(buffer: torch.Tensor, dtype: str, *multiples: npt.NDArray[np.int64]) -> INT64:
    """How each piece may be loaded: 16 bytes, one element or one byte at a time (see triton_kernels)."""
    together = np.bitwise_or.reduce(multiples) | (buffer.data_ptr() % 16)
    access: INT64 = np.where(together % 16 == 0, 16, np.where(together % ITEMSIZE[dtype] == 0, ITEMSIZE[dtype], 1))
    return access


def _view(buffer: torch.Tensor, unit: int) -> torch.Tensor:
    """The bytes as integers of ``unit`` bytes."""
    return buffer[: len(buffer) // unit * unit].view(INTEGERS[unit])


def _to_host(values: torch.Tensor) -> FLOAT32:
    array: FLOAT32 = values.cpu().numpy()
    return array
