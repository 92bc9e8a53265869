"""From matrices to reads: which bytes to fetch, in what order, and what each stretch of them feeds.

A *region* is a rectangle of a stored tensor that belongs to one matrix. The rows that any region of a tensor needs are
read once, whatever the layout, and are cut into *pieces*: runs of whole rows, or runs of columns of a row that is
longer than a slot. Neighbouring pieces of one file are joined into a *slot*, which is what one read fetches. Gaps are
read over where they cost at most 1 MiB and 1% of what the slot reads already. Every region clipped to every piece that
it meets is a *rectangle*, the kernels' unit of work.

Nothing here touches a file. Time and memory are O(tensors + rectangles); beyond the loop that collects regions nearly
all of it is array arithmetic, so that 200,000 tensors are planned in about a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from weightprint.data import Matrix, TensorSpec
from weightprint_kernels.layout import (
    CHUNK_ELEMENTS,
    COLUMN_ENERGY,
    INT64,
    ITEMSIZE,
    NO_ENERGY,
    ROW_ENERGY,
    Rectangles,
    spread,
)

SLOT_BYTES = 16 * 2**20
PIECE_BYTES = 4 * 2**20
"""Of a piece at most, and so of a slot at least: a larger slot that cannot take another piece is nearly full."""
GAP_BYTES = 2**20
GAP_SHARE = 100  # a gap may be read over where it is at most 1/100 of what the slot reads already

UNITS_ARE_OUTPUTS = {"v": True, "o": False, "gate": True, "up": True, "down": False}
"""Roles whose units are exchangeable, each of which feeds the channel of its name: rows of V, columns of O; rows of a
feed-forward block's gate and up, columns of its down. Outputs are rows, inputs are columns."""

INPUTS_JOIN = frozenset({"down"})
"""Roles whose parts follow each other along the inputs: experts have their hidden units side by side."""

DTYPES = tuple(ITEMSIZE)


@dataclass(frozen=True)
class Batch:
    """The rectangles of one dtype in a slot. ``matrix`` is the number of each one's matrix, ``unit`` the matrix's unit
    that its first energy belongs to, both int64 [n]."""

    dtype: str
    rectangles: Rectangles
    matrix: INT64
    unit: INT64


@dataclass(frozen=True)
class Slot:
    """One read: ``length`` bytes from ``offset`` of ``path``, and what they feed."""

    path: Path
    offset: int
    length: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """All reads of one checkpoint, file by file and in file order, as columns.

    Slot s reads ``length[s]`` bytes from ``offset[s]`` of ``paths[file[s]]`` and feeds the rectangles
    ``first[s]`` to ``first[s + 1]``, sorted by dtype. ``rectangles`` lie in their slots; ``dtype`` counts DTYPES.
    ``selected`` counts each byte that a matrix needs once.
    """

    matrices: tuple[Matrix, ...]
    paths: tuple[Path, ...]
    file: INT64
    offset: INT64
    length: INT64
    first: INT64
    rectangles: Rectangles
    dtype: INT64
    matrix: INT64
    unit: INT64
    selected: int

    def __len__(self) -> int:
        return len(self.file)

    @cached_property
    def read(self) -> int:
        """Bytes that carrying out the plan reads: what is selected, and the small gaps in between."""
        return int(self.length.sum())

    def slot(self, number: int) -> Slot:
        """Slot ``number``."""
        start, stop = int(self.first[number]), int(self.first[number + 1])
        borders = [start, stop]
        if self.dtype[start] != self.dtype[stop - 1]:
            borders[1:1] = (np.flatnonzero(np.diff(self.dtype[start:stop])) + 1 + start).tolist()
        batches = tuple(self._batch(low, high) for low, high in itertools.pairwise(borders))
        return Slot(self.paths[self.file[number]], int(self.offset[number]), int(self.length[number]), batches)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot, in order, made anew each time."""
        return tuple(self.slot(number) for number in range(len(self)))

    def _batch(self, start: int, stop: int) -> Batch:
        whole = self.rectangles
        part = (column[start:stop] for column in (whole.offset, whole.stride, whole.rows, whole.columns, whole.axis))
        return Batch(DTYPES[self.dtype[start]], Rectangles(*part), self.matrix[start:stop], self.unit[start:stop])


def plan_reads(matrices: Sequence[Matrix], slot_bytes: int = SLOT_BYTES) -> Plan:
    """Plan the reads of ``matrices``; every dtype must be one that the kernels decode."""
    tensors, regions = _collect(matrices)
    intervals, interval_of = _intervals(regions)
    # Pieces decide the order of sums, so they must not depend on how many of them a slot holds.
    pieces = _cut(tensors, intervals, min(slot_bytes, PIECE_BYTES))
    parts = _clip(tensors, regions, intervals, interval_of, pieces)
    paths = tuple(dict.fromkeys(sorted((spec.path for spec in tensors.specs), key=str)))
    number_of = {path: number for number, path in enumerate(paths)}
    file_of = np.array([number_of[spec.path] for spec in tensors.specs], np.int64)
    # A piece of a row that no region reaches into is not read.
    used = np.unique(parts.piece)
    order = used[np.lexsort((pieces.offset[used], file_of[pieces.tensor[used]]))]
    file, offset, length = file_of[pieces.tensor[order]], pieces.offset[order], pieces.length[order]
    slot, start, stop = _join(file, offset, length, slot_bytes)
    slot_of, place_of = np.zeros(len(pieces.tensor), np.int64), np.zeros(len(pieces.tensor), np.int64)
    slot_of[order], place_of[order] = slot, np.arange(len(order))

    dtype_of = np.array([DTYPES.index(spec.dtype) for spec in tensors.specs], np.int64)
    dtype = dtype_of[pieces.tensor[parts.piece]]
    sorting = np.lexsort((place_of[parts.piece], dtype, slot_of[parts.piece]))
    piece = parts.piece[sorting]
    rectangles = Rectangles(
        offset=(parts.offset + pieces.offset[parts.piece] - start[slot_of[parts.piece]])[sorting],
        stride=(tensors.columns * tensors.itemsize)[pieces.tensor[piece]],
        rows=parts.rows[sorting],
        columns=parts.columns[sorting],
        axis=regions.axis[parts.region[sorting]],
    )
    return Plan(
        matrices=tuple(matrices),
        paths=paths,
        file=file[np.searchsorted(slot, np.arange(len(start)))],
        offset=start,
        length=stop - start,
        first=np.searchsorted(slot_of[piece], np.arange(len(start) + 1)),
        rectangles=rectangles,
        dtype=dtype[sorting],
        matrix=regions.matrix[parts.region[sorting]],
        unit=parts.unit[sorting],
        selected=int(length.sum()),
    )


@dataclass(frozen=True)
class _Tensors:
    """The tensors that are read, each once, as they are stored."""

    specs: Sequence[TensorSpec]
    rows: INT64
    columns: INT64
    offset: INT64
    itemsize: INT64


@dataclass(frozen=True)
class _Regions:
    """Rows [top, bottom) and columns [left, right) of a tensor that belong to a matrix. ``unit`` is the matrix's unit
    of the first energy along ``axis``."""

    tensor: INT64
    matrix: INT64
    top: INT64
    bottom: INT64
    left: INT64
    right: INT64
    axis: INT64
    unit: INT64


@dataclass(frozen=True)
class _Intervals:
    """Disjoint runs of rows of tensors: the rows that any region needs."""

    tensor: INT64
    top: INT64
    bottom: INT64


@dataclass(frozen=True)
class _Pieces:
    """Rectangles of bytes, interval by interval, row by row. Interval i is cut every ``rows_each[i]`` rows and into
    ``across[i]`` runs of columns; its first piece is ``first[i]``."""

    tensor: INT64
    top: INT64
    left: INT64
    right: INT64
    bottom: INT64
    offset: INT64
    length: INT64
    first: INT64
    rows_each: INT64
    across: INT64


@dataclass(frozen=True)
class _Parts:
    """Regions clipped to pieces; ``offset`` counts from the piece's first byte."""

    region: INT64
    piece: INT64
    offset: INT64
    rows: INT64
    columns: INT64
    unit: INT64


def _collect(matrices: Sequence[Matrix]) -> tuple[_Tensors, _Regions]:
    number_of: dict[tuple[int, str, Path], int] = {}
    specs: list[TensorSpec] = []
    shapes: list[tuple[int, int]] = []
    found: list[tuple[int, ...]] = []
    for number, matrix in enumerate(matrices):
        unit = first_input = 0
        inputs = not UNITS_ARE_OUTPUTS.get(matrix.role, False)
        for part in matrix.parts:
            spec = part.tensor
            key = (spec.offset, spec.name, spec.path)
            tensor = number_of.setdefault(key, len(specs))
            if tensor == len(specs):
                specs.append(spec)
                # What the bytes are: a column-major tensor is the row-major array of its transpose.
                shapes.append(part.stored[::-1] if spec.column_major else part.stored)
            rows, columns = shapes[tensor]
            along_rows = matrix.transposed == spec.column_major
            axis = _energy_axis(matrix.role, along_rows)
            for start, stop in part.ranges:
                bounds = (start, stop, 0, columns) if along_rows else (0, rows, start, stop)
                # V's units are outputs, which the ranges count; O's are inputs, of which each range has all.
                found.append((tensor, number, *bounds, axis, first_input if inputs else unit))
                unit += stop - start
            if matrix.role in INPUTS_JOIN:
                first_input += part.stored[0] if matrix.transposed else part.stored[1]
    regions = np.array(found, np.int64).reshape(-1, 8)
    sizes = np.array(shapes, np.int64).reshape(-1, 2)
    return (
        _Tensors(
            specs,
            sizes[:, 0],
            sizes[:, 1],
            np.array([spec.offset for spec in specs], np.int64),
            np.array([ITEMSIZE[spec.dtype] for spec in specs], np.int64),
        ),
        _Regions(*regions.T),
    )


def _energy_axis(role: str, outputs_along_rows: bool) -> int:
    """Along which stored axis the matrix's exchangeable units run: V's are outputs, O's are inputs."""
    if role not in UNITS_ARE_OUTPUTS:
        return NO_ENERGY
    return ROW_ENERGY if UNITS_ARE_OUTPUTS[role] == outputs_along_rows else COLUMN_ENERGY


def _intervals(regions: _Regions) -> tuple[_Intervals, INT64]:
    """The union of the regions' rows, tensor by tensor, touching runs joined; and which of them covers each region."""
    order = np.lexsort((regions.top, regions.tensor))
    joined: list[list[int]] = []
    covering = []
    for tensor, top, bottom in zip(
        regions.tensor[order].tolist(), regions.top[order].tolist(), regions.bottom[order].tolist(), strict=True
    ):
        if joined and joined[-1][0] == tensor and top <= joined[-1][2]:
            joined[-1][2] = max(joined[-1][2], bottom)
        else:
            joined.append([tensor, top, bottom])
        covering.append(len(joined) - 1)
    interval_of = np.empty(len(order), np.int64)
    interval_of[order] = covering
    return _Intervals(*np.array(joined, np.int64).reshape(-1, 3).T), interval_of


def _cut(tensors: _Tensors, intervals: _Intervals, piece_bytes: int) -> _Pieces:
    """Cut intervals into pieces of at most ``piece_bytes``; rows longer than that between chunks, so that every chunk
    stays whole."""
    columns, itemsize = tensors.columns[intervals.tensor], tensors.itemsize[intervals.tensor]
    row_bytes = columns * itemsize
    rows_each = np.maximum(piece_bytes // np.maximum(row_bytes, 1), 1)
    chunks = np.maximum(piece_bytes // itemsize // CHUNK_ELEMENTS, 1) * CHUNK_ELEMENTS
    columns_each = np.maximum(np.where(row_bytes > piece_bytes, chunks, columns), 1)
    across = -(-columns // columns_each)
    counts = -(-(intervals.bottom - intervals.top) // rows_each) * across
    interval, within = spread(counts)
    top = intervals.top[interval] + within // across[interval] * rows_each[interval]
    left = within % across[interval] * columns_each[interval]
    bottom = np.minimum(top + rows_each[interval], intervals.bottom[interval])
    right = np.minimum(left + columns_each[interval], columns[interval])
    tensor = intervals.tensor[interval]
    return _Pieces(
        tensor=tensor,
        top=top,
        left=left,
        right=right,
        bottom=bottom,
        offset=tensors.offset[tensor] + (top * columns[interval] + left) * itemsize[interval],
        length=((bottom - top - 1) * columns[interval] + right - left) * itemsize[interval],
        first=np.cumsum(counts) - counts,
        rows_each=rows_each,
        across=across,
    )


def _clip(tensors: _Tensors, regions: _Regions, intervals: _Intervals, interval: INT64, pieces: _Pieces) -> _Parts:
    """Every region, covered by ``interval``, clipped to every piece that it meets."""
    rows_each, across, base = pieces.rows_each[interval], pieces.across[interval], intervals.top[interval]
    low, high = (regions.top - base) // rows_each, (regions.bottom - 1 - base) // rows_each + 1
    region, within = spread((high - low) * across)
    piece = (pieces.first[interval] + low * across)[region] + within
    top = np.maximum(regions.top[region], pieces.top[piece])
    left = np.maximum(regions.left[region], pieces.left[piece])
    rows = np.minimum(regions.bottom[region], pieces.bottom[piece]) - top
    columns = np.minimum(regions.right[region], pieces.right[piece]) - left
    tensor = pieces.tensor[piece]
    width, itemsize = tensors.columns[tensor], tensors.itemsize[tensor]
    down, along = top - regions.top[region], left - regions.left[region]
    parts = _Parts(
        region=region,
        piece=piece,
        offset=((top - pieces.top[piece]) * width + left - pieces.left[piece]) * itemsize,
        rows=rows,
        columns=columns,
        unit=regions.unit[region] + np.select([regions.axis[region] == ROW_ENERGY], [down], along),
    )
    met = (rows > 0) & (columns > 0)
    return _Parts(*(column[met] for column in vars(parts).values()))


def _join(file: INT64, offset: INT64, length: INT64, slot_bytes: int) -> tuple[INT64, INT64, INT64]:
    """Join pieces, sorted by file and offset, that lie next to each other: slot of each piece, start and stop of each
    slot."""
    slot_of: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    last, start, stop = -1, 0, 0
    for own, begin, size in zip(file.tolist(), offset.tolist(), length.tolist(), strict=True):
        gap = begin - stop
        near = own == last and 0 <= gap <= GAP_BYTES and gap * GAP_SHARE <= stop - start
        if not near or begin + size - start > slot_bytes:
            starts.append(begin)
            stops.append(begin)
            last, start = own, begin
        stop = begin + size
        stops[-1] = stop
        slot_of.append(len(starts) - 1)
    return np.array(slot_of, np.int64), np.array(starts, np.int64), np.array(stops, np.int64)
