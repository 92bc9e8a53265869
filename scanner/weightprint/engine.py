"""From planned reads to merged moments and unit energies: bytes stream through one bounded buffer.

Per slot: one read, at most one moments launch and one column-energy launch per dtype. Memory is one slot and the
running sums of the matrices, whatever the size of the checkpoint. A file that cannot be read to its end costs the
matrices that lie in it and a notice; the other files go on. Merging is in float64 and in plan order, so the same
input on the same backend gives the same bits.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightprint.data import Matrix
from weightprint.errors import CheckpointError, Notice
from weightprint.plan import Piece, Plan, Region, Slot
from weightprint_kernels.backend import Backend
from weightprint_kernels.compute import column_energy_tiles, moments_rows
from weightprint_kernels.layout import (
    FLOAT64,
    ITEMSIZE,
    TILE_COLUMNS,
    UINT8,
    Chunks,
    Tiles,
    chunk_matrix,
    chunks_per_row,
    join_chunks,
    join_tiles,
    tile_matrix,
)
from weightprint_kernels.merge import MergedMoments, combine, merge_rows, row_energies

CHANNELS = {"v": "v", "o": "o"}
"""Roles whose units are exchangeable, and the channel they feed: rows of V, columns of O (METHOD.md, section 2)."""


@dataclass(frozen=True)
class Reduction:
    """What a checkpoint's bytes were reduced to.

    ``moments`` and ``energies`` (float64 [units]) are by matrix number; matrices of files that could not be read are
    missing.
    """

    moments: Mapping[int, MergedMoments]
    energies: Mapping[int, FLOAT64]
    bytes_read: int
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class _Use:
    """One region of one piece, with its place in the slot."""

    region: Region
    offset: int
    stride: int

    @property
    def rows(self) -> int:
        return self.region.bottom - self.region.top

    @property
    def columns(self) -> int:
        return self.region.right - self.region.left


def reduce_plan(plan: Plan, backend: Backend) -> Reduction:
    """Carry out ``plan`` on ``backend``. Faults of the files become notices; faults of the device propagate."""
    moments: dict[int, MergedMoments] = {}
    energies = {
        number: np.zeros(_units(matrix)) for number, matrix in enumerate(plan.matrices) if matrix.role in CHANNELS
    }
    buffer = np.empty(max((slot.length for slot in plan.slots), default=0), dtype=np.uint8)
    notices: list[Notice] = []
    lost: set[int] = set()
    bytes_read = 0
    for path, slots in _by_file(plan.slots):
        remaining = list(slots)
        try:
            with open_regular(path) as descriptor:
                while remaining:
                    slot = remaining[0]
                    data = buffer[: slot.length]
                    bytes_read += _read_into(descriptor, data, slot)
                    _reduce_slot(slot, data, plan, backend, moments, energies)
                    remaining.pop(0)
        except CheckpointError as error:
            notices.append(error.notice())
            lost |= {region.matrix for slot in remaining for piece in slot.pieces for region in piece.regions}
    return Reduction(
        {number: merged for number, merged in moments.items() if number not in lost},
        {number: units for number, units in energies.items() if number not in lost},
        bytes_read,
        tuple(notices),
    )


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a regular file for reading and give its descriptor; a pipe or a device is refused without blocking."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError("E_READ", f"cannot be opened ({error.strerror})", path=path) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError("E_NOT_REGULAR", "is not a regular file", path=path)
        yield descriptor
    finally:
        os.close(descriptor)


def _by_file(slots: tuple[Slot, ...]) -> Iterator[tuple[Path, list[Slot]]]:
    grouped: dict[Path, list[Slot]] = defaultdict(list)
    for slot in slots:
        grouped[slot.path].append(slot)
    yield from grouped.items()


def _read_into(descriptor: int, data: UINT8, slot: Slot) -> int:
    view = data.data
    done = 0
    while done < slot.length:
        try:
            count = os.preadv(descriptor, [view[done:]], slot.offset + done)
        except OSError as error:
            message = f"reading at byte {slot.offset + done} failed ({error.strerror}); check the disk and scan again"
            raise CheckpointError("E_READ", message, path=slot.path) from None
        if count == 0:
            message = (
                f"ends at byte {slot.offset + done}, {slot.length - done} bytes short of what its header describes; "
                "fetch the file again"
            )
            raise CheckpointError("E_FILE_TRUNCATED", message, path=slot.path)
        done += count
    return done


def _reduce_slot(
    slot: Slot,
    data: UINT8,
    plan: Plan,
    backend: Backend,
    moments: dict[int, MergedMoments],
    energies: dict[int, FLOAT64],
) -> None:
    """Add the slot's share to the running moments and energies."""
    buffer = backend.place(data)
    uses: dict[str, list[_Use]] = defaultdict(list)
    for piece in slot.pieces:
        uses[piece.dtype] += [_use(piece, region) for region in piece.regions]
    for dtype, users in uses.items():
        itemsize = ITEMSIZE[dtype]
        chunks = [chunk_matrix(use.offset, use.rows, use.columns, use.stride, itemsize) for use in users]
        table = join_chunks(chunks)
        rows = moments_rows(backend, data, buffer, table, dtype)
        _take_rows(users, chunks, rows, plan, moments, energies)
        by_column = [use for use in users if _energy_axis(plan, use.region) == "columns"]
        tiles = [tile_matrix(use.offset, use.rows, use.columns, use.stride, itemsize) for use in by_column]
        if tiles:
            sums = column_energy_tiles(backend, data, buffer, join_tiles(tiles), dtype)
            _take_tiles(by_column, tiles, sums, energies)


def _use(piece: Piece, region: Region) -> _Use:
    itemsize = ITEMSIZE[piece.dtype]
    offset = piece.offset + (region.top - piece.top) * piece.stride + (region.left - piece.left) * itemsize
    return _Use(region, offset, piece.stride)


def _take_rows(
    users: list[_Use],
    chunks: list[Chunks],
    rows: FLOAT64,
    plan: Plan,
    moments: dict[int, MergedMoments],
    energies: dict[int, FLOAT64],
) -> None:
    start = 0
    for use, table in zip(users, chunks, strict=True):
        own = rows[start : start + len(table)]
        start += len(table)
        number = use.region.matrix
        merged = merge_rows(own)
        moments[number] = combine(moments[number], merged) if number in moments else merged
        if _energy_axis(plan, use.region) == "rows":
            first = use.region.row_unit
            per_row = chunks_per_row(use.columns)
            energies[number][first : first + use.rows] += row_energies(own, per_row, table.count)


def _take_tiles(users: list[_Use], tiles: list[Tiles], sums: FLOAT64, energies: dict[int, FLOAT64]) -> None:
    start = 0
    for use, table in zip(users, tiles, strict=True):
        own = sums[start : start + len(table)]
        start += len(table)
        across = -(-use.columns // TILE_COLUMNS)
        by_column = own.reshape(-1, across * TILE_COLUMNS).sum(axis=0)[: use.columns]
        first = use.region.column_unit
        energies[use.region.matrix][first : first + use.columns] += by_column


def _energy_axis(plan: Plan, region: Region) -> str | None:
    """Along which stored axis the matrix's exchangeable units run: V's are outputs, O's are inputs."""
    role = plan.matrices[region.matrix].role
    if role not in CHANNELS:
        return None
    return "rows" if (role == "v") == region.outputs_along_rows else "columns"


def _units(matrix: Matrix) -> int:
    return matrix.shape[0] if matrix.role == "v" else matrix.shape[1]
