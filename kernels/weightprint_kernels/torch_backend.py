"""Moments and column energies with torch, on CPU and CUDA: the path without Triton.

Chunks of equal length and distance are reduced together as one strided view, through float32 scratch that stays in
the cache. The shift is the chunk's mean held between its smallest and largest element, so a constant chunk has no
spread at all; a masked pass runs only where a sum shows that something is not finite. Given up: the elements are
walked over a dozen times, which costs about half of what one fused pass would read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from weightprint_kernels.layout import FLOAT32, INT64, ITEMSIZE, ROW_FIELDS, TILE_COLUMNS, UINT8, Chunks, Tiles

SCRATCH_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}
"""Elements of one batch; the working set is two of these in float32."""

STORED = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f8_e4m3": torch.int8,
    "f8_e5m2": torch.int8,
}
"""How torch sees the elements; its own conversion of 8-bit floats is ten times slower than the shifts of _decode."""


class TorchBackend:
    """torch on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.name = f"torch-{torch.device(device).type}"

    def place(self, data: UINT8) -> torch.Tensor:
        """The bytes as a uint8 tensor on the device; on the CPU without a copy."""
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
        elements = SCRATCH_ELEMENTS[torch.device(self.device).type]
        scratch = [torch.empty(0, device=self.device) for _ in range(2)]
        typed = _typed(buffer, dtype)
        for run in _runs(chunks):
            batch = max(1, elements // max(run.count, 1))
            for first in range(0, len(run.index), batch):
                index = run.index[first : first + batch]
                shape = (len(index), run.count)
                values, other = (_shaped(flat, shape) for flat in scratch)
                offset = run.offset + first * run.step
                _decode(_strided(buffer, typed, offset, shape, run.step, dtype), dtype, values, other)
                rows[torch.from_numpy(index)] = _reduce(values, other)
        return rows

    def column_energies_there(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> torch.Tensor:
        """Σ w² per column, float32 [n, TILE_COLUMNS], on the device."""
        sums = torch.zeros((len(tiles), TILE_COLUMNS), device=self.device)
        scratch = [torch.empty(0, device=self.device) for _ in range(2)]
        typed = _typed(buffer, dtype)
        table = (column.tolist() for column in (tiles.offset, tiles.stride, tiles.rows, tiles.columns))
        for number, (offset, stride, rows, columns) in enumerate(zip(*table, strict=True)):
            shape = (rows, columns)
            values, other = (_shaped(flat, shape) for flat in scratch)
            _decode(_strided(buffer, typed, offset, shape, stride, dtype), dtype, values, other)
            torch.sum(values.square_(), dim=0, out=sums[number, :columns])
        return sums


class _Writable:
    """An array's memory without its read-only flag: torch warns of read-only arrays, and nothing here writes."""

    def __init__(self, data: UINT8) -> None:
        self.data = data
        self.__array_interface__: dict[str, Any] = {**data.__array_interface__, "data": (data.ctypes.data, False)}


def as_tensor(data: UINT8) -> torch.Tensor:
    """Bytes as a tensor on the host, without a copy, also out of read-only memory."""
    return torch.from_numpy(data if data.flags.writeable else np.asarray(_Writable(data)))


@dataclass(frozen=True)
class _Run:
    """Chunks of one length whose starts lie ``step`` bytes apart; ``index`` are their rows in the work table."""

    index: INT64
    offset: int
    count: int
    step: int


def _runs(chunks: Chunks) -> Iterator[_Run]:
    """The work table as few runs as a greedy walk over sorted offsets finds."""
    order = np.lexsort((chunks.offset, chunks.count))
    offsets, counts = chunks.offset[order], chunks.count[order]
    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(order)]
    for low, high in itertools.pairwise(borders):
        steps = np.diff(offsets[low:high])
        ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
        start = 0
        for end in ends:
            # Where the distance changes, the element after the change opens the next run.
            if end > start:
                yield _Run(
                    order[low + start : low + end + 1], int(offsets[low + start]), int(counts[low]), int(steps[start])
                )
                start = end + 1
        if start < high - low:
            yield _Run(order[low + start : high], int(offsets[low + start]), int(counts[low]), 0)


def _typed(buffer: torch.Tensor, dtype: str) -> torch.Tensor | None:
    """The whole buffer in its own dtype, or None where its memory is not aligned for that."""
    itemsize = ITEMSIZE[dtype]
    if len(buffer) < itemsize or buffer.data_ptr() % itemsize or buffer.storage_offset() % itemsize:
        return None
    return buffer[: len(buffer) // itemsize * itemsize].view(STORED[dtype])


def _strided(
    buffer: torch.Tensor, typed: torch.Tensor | None, offset: int, shape: tuple[int, int], stride: int, dtype: str
) -> torch.Tensor:
    """[rows, columns] elements whose rows lie ``stride`` bytes apart: a view, or a copy where bytes are not aligned."""
    itemsize = ITEMSIZE[dtype]
    rows, columns = shape
    if typed is None or offset % itemsize or stride % itemsize:
        raw = buffer.as_strided((rows, columns * itemsize), (stride, 1), buffer.storage_offset() + offset)
        return raw.clone(memory_format=torch.contiguous_format).view(STORED[dtype])
    return typed.as_strided(shape, (stride // itemsize, 1), typed.storage_offset() + offset // itemsize)


def _shaped(flat: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The front of ``flat``, made larger where it must be, in that shape."""
    elements = shape[0] * shape[1]
    if len(flat) < elements:
        flat.resize_(elements)
    return flat[:elements].view(shape)


def _decode(stored: torch.Tensor, dtype: str, values: torch.Tensor, other: torch.Tensor) -> None:
    """Write the elements into ``values``, float32; ``other`` is scratch of the same shape."""
    if dtype == "f8_e5m2":
        # E5M2 is the upper byte of a binary16.
        halves = other.view(-1).view(torch.int16)[: stored.numel()].view(stored.shape)
        values.copy_(halves.copy_(stored).bitwise_left_shift_(8).view(torch.float16))
    elif dtype == "f8_e4m3":
        # Sign and magnitude at their places in a binary32, whose exponent is then 120 too small. int8 extends its sign.
        values.view(torch.int32).copy_(stored).bitwise_left_shift_(20).bitwise_and_(-0x78100000)
        values.mul_(2.0**120)
        # The one code beyond the largest finite value, 448, is NaN; it comes out as 480.
        if float(torch.maximum(values.amax(), -values.amin())) > 448:
            values.masked_fill_(values.abs() > 448, torch.nan)
    else:
        values.copy_(stored)


def _reduce(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Partial rows [m, 8] of ``values``, float32 [m, count], which are written over; ``other`` is scratch."""
    count = values.shape[1]
    total = values.sum(dim=1)
    mask = None
    if math.isfinite(float(total.sum())):
        finite = torch.full_like(total, count)
        low, high = values.amin(dim=1), values.amax(dim=1)
    else:
        mask = torch.isfinite(values)
        finite = mask.sum(dim=1, dtype=torch.float32)
        empty = finite == 0
        low = torch.where(mask, values, torch.inf).amin(dim=1).masked_fill(empty, 0.0)
        high = torch.where(mask, values, -torch.inf).amax(dim=1).masked_fill(empty, 0.0)
        total = torch.where(mask, values, 0.0).sum(dim=1)
    zeros = count - torch.ne(values, 0, out=other).sum(dim=1)
    shift = torch.clamp(total / finite.clamp(min=1), low, high)
    centred = values.sub_(shift[:, None])
    if mask is not None:
        centred.masked_fill_(~mask, 0.0)
    squared = torch.mul(centred, centred, out=other)
    s1, s2 = centred.sum(dim=1), squared.sum(dim=1)
    s3 = centred.mul_(squared).sum(dim=1)
    s4 = squared.square_().sum(dim=1)
    return torch.stack([shift, s1, s2, s3, s4, torch.maximum(high, -low), finite, zeros], dim=1)


def _to_host(values: torch.Tensor) -> FLOAT32:
    array: FLOAT32 = values.cpu().numpy()
    return array
