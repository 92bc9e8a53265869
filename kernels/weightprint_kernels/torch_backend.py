"""Moments and column energies with torch, on CPU and CUDA: the path without Triton.

Chunks of equal length and distance are reduced together as one strided view, in float32 scratch of about a million
elements. The shift is the chunk's mean, from a first pass over the scratch; a masked pass runs only where a sum
shows that something is not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from weightprint_kernels.layout import FLOAT32, INT64, ITEMSIZE, ROW_FIELDS, TILE_COLUMNS, UINT8, Chunks, Tiles

SCRATCH_ELEMENTS = 2**18

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
}


class TorchBackend:
    """torch on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.name = f"torch-{torch.device(device).type}"

    def place(self, data: UINT8) -> torch.Tensor:
        """The bytes as a uint8 tensor on the device; on the CPU without a copy."""
        with warnings.catch_warnings():
            # Read-only memory maps are welcome: nothing here writes.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(data).to(self.device)

    def moments(self, buffer: torch.Tensor, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [n, 8]."""
        rows = torch.full((len(chunks), len(ROW_FIELDS)), torch.nan, device=self.device)
        for start, stop, step in _runs(chunks.offset, chunks.count):
            count = int(chunks.count[start])
            per_batch = max(1, SCRATCH_ELEMENTS // max(count, 1))
            for first in range(start, stop, per_batch):
                last = min(first + per_batch, stop)
                values = _strided(buffer, int(chunks.offset[first]), last - first, count, step, dtype)
                _reduce(values.float(), rows[first:last])
        return _to_host(rows)

    def column_energies(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column, float32 [n, TILE_COLUMNS]."""
        sums = torch.zeros((len(tiles), TILE_COLUMNS), device=self.device)
        for number in range(len(tiles)):
            rows, columns = int(tiles.rows[number]), int(tiles.columns[number])
            values = _strided(buffer, int(tiles.offset[number]), rows, columns, int(tiles.stride[number]), dtype)
            torch.sum(values.float().square_() if dtype != "f32" else values.square(), dim=0, out=sums[number, :columns])
        return _to_host(sums)


def _to_host(values: torch.Tensor) -> FLOAT32:
    array: FLOAT32 = values.cpu().numpy()
    return array


def _runs(offsets: INT64, counts: INT64) -> Iterator[tuple[int, int, int]]:
    """(start, stop, step in bytes) of runs of chunks with one length and one distance."""
    if not len(offsets):
        return
    steps = np.diff(offsets)
    start = 0
    while start < len(offsets):
        if start + 1 == len(offsets):
            yield start, start + 1, 0
            return
        step = int(steps[start])
        same = (steps[start:] == step) & (counts[start + 1 :] == counts[start]) & (step > 0)
        length = len(same) if same.all() else int(np.argmin(same))
        yield start, start + length + 1, step if length else 0
        start += length + 1


def _strided(buffer: torch.Tensor, offset: int, rows: int, columns: int, stride: int, dtype: str) -> torch.Tensor:
    """A [rows, columns] view of the bytes in their own dtype; a copy only where bytes are not aligned to it."""
    itemsize = ITEMSIZE[dtype]
    length = (rows - 1) * stride + columns * itemsize
    raw = buffer[offset : offset + length]
    if stride % itemsize:
        packed = raw.as_strided((rows, columns * itemsize), (stride, 1)).contiguous()
        return packed.view(DTYPES[dtype])
    if (raw.storage_offset() + raw.data_ptr()) % itemsize or raw.storage_offset() % itemsize:
        raw = raw.clone()
    return raw.view(DTYPES[dtype]).as_strided(
        (rows, columns), (stride // itemsize, 1), raw.storage_offset() // itemsize
    )


def _reduce(values: torch.Tensor, rows: torch.Tensor) -> None:
    """Write the partial rows of ``values``, float32 [m, count], into ``rows`` [m, 8]."""
    count = values.shape[1]
    total = values.sum(dim=1)
    if bool(torch.isfinite(total).all()):
        finite = torch.full_like(total, count)
        shift = total / count
        centred = values - shift[:, None]
        magnitude = values
    else:
        mask = torch.isfinite(values)
        magnitude = torch.where(mask, values, torch.nan)
        finite = mask.sum(dim=1, dtype=torch.float32)
        values = torch.where(mask, values, 0.0)
        shift = values.sum(dim=1) / finite.clamp(min=1)
        centred = torch.where(mask, values - shift[:, None], 0.0)
    squared = centred * centred
    rows[:, 0] = shift
    rows[:, 1] = centred.sum(dim=1)
    rows[:, 2] = squared.sum(dim=1)
    rows[:, 3] = torch.linalg.vecdot(squared, centred)
    rows[:, 4] = torch.linalg.vecdot(squared, squared)
    rows[:, 5] = values.abs().amax(dim=1)
    rows[:, 6] = finite
    rows[:, 7] = (magnitude == 0).sum(dim=1)
