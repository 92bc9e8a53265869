"""From matrices to reads: which bytes to fetch, in what order, and what each stretch of them feeds.

A *region* is a rectangle of a stored tensor that belongs to one matrix. The regions of a tensor are read together,
row by row, so that a fused q|k|v tensor is read once whatever its layout. A *piece* is a run of stored rows (or, for
rows longer than a slot, a run of columns of one row); neighbouring pieces of one file are joined into a *slot* of at
most ``slot_bytes``, which is what one read fetches and one kernel launch reduces. Gaps are read over only where they
cost at most 1% of the slot.

Nothing here touches a file. Memory is O(pieces); the largest buffer that a scan needs is one slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightprint.data import Matrix, TensorSpec
from weightprint_kernels.layout import CHUNK_ELEMENTS, ITEMSIZE

SLOT_BYTES = 4 * 2**20
GAP_SHARE = 100  # a gap may be read over where it is at most 1/100 of what the slot reads already


@dataclass(frozen=True)
class Region:
    """Rows [top, bottom) and columns [left, right) of a stored tensor, given to matrix number ``matrix``.

    ``row_unit`` and ``column_unit`` are the unit numbers of row ``top`` and column ``left`` along the two axes.
    ``outputs_along_rows`` says that the matrix's output units run along the stored rows, its inputs along the columns.
    """

    matrix: int
    top: int
    bottom: int
    left: int
    right: int
    row_unit: int
    column_unit: int
    outputs_along_rows: bool


@dataclass(frozen=True)
class Piece:
    """A rectangle of bytes inside a slot: first byte at ``offset`` of the slot, rows ``stride`` bytes apart.

    The rectangle is [top, bottom) x [left, right) of the stored tensor, which the regions are clipped to.
    """

    offset: int
    stride: int
    dtype: str
    top: int
    bottom: int
    left: int
    right: int
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Slot:
    """One read: ``length`` bytes from ``offset`` of ``path``."""

    path: Path
    offset: int
    length: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """All reads of one checkpoint, file by file and in file order. ``selected`` counts each attention byte once."""

    matrices: tuple[Matrix, ...]
    slots: tuple[Slot, ...]
    selected: int

    @property
    def read(self) -> int:
        """Bytes that carrying out the plan reads: what is selected, and the small gaps in between."""
        return sum(slot.length for slot in self.slots)


def plan_reads(matrices: Sequence[Matrix], slot_bytes: int = SLOT_BYTES) -> Plan:
    """Plan the reads of ``matrices``; every dtype must be one that the kernels decode."""
    tensors: dict[tuple[Path, int, str], TensorSpec] = {}
    shapes: dict[tuple[Path, int, str], tuple[int, int]] = {}
    regions: dict[tuple[Path, int, str], list[Region]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        unit = 0
        for part in matrix.parts:
            key = (part.tensor.path, part.tensor.offset, part.tensor.name)
            # What the bytes are: a column-major tensor is the row-major array of its transpose.
            stored = part.stored[::-1] if part.tensor.column_major else part.stored
            along_rows = matrix.transposed == part.tensor.column_major
            tensors[key], shapes[key] = part.tensor, stored
            for start, stop in part.ranges:
                regions[key].append(_region(number, along_rows, stored, start, stop, unit))
                unit += stop - start
    extents: list[tuple[Path, int, int, Piece]] = []
    selected = 0
    for key in sorted(tensors, key=lambda key: (str(key[0]), key[1])):
        pieces = list(_cut(tensors[key], shapes[key], regions[key], slot_bytes))
        extents += pieces
        selected += sum(length for _, _, length, _ in pieces)
    return Plan(tuple(matrices), tuple(_join(extents, slot_bytes)), selected)


def _region(number: int, along_rows: bool, stored: tuple[int, int], start: int, stop: int, unit: int) -> Region:
    rows, columns = stored
    if along_rows:
        return Region(number, start, stop, 0, columns, row_unit=unit, column_unit=0, outputs_along_rows=True)
    return Region(number, 0, rows, start, stop, row_unit=0, column_unit=unit, outputs_along_rows=False)


def _cut(
    tensor: TensorSpec, stored: tuple[int, int], regions: Sequence[Region], slot_bytes: int
) -> Iterator[tuple[Path, int, int, Piece]]:
    """Cut the rows that any region needs into pieces of at most a slot: (file, offset, length, piece at offset 0)."""
    _, columns = stored
    itemsize = ITEMSIZE[tensor.dtype]
    row_bytes = columns * itemsize
    rows_per_piece = max(1, slot_bytes // row_bytes)
    # Rows longer than a slot are cut between chunks, so that every chunk stays whole.
    columns_per_piece = columns
    if row_bytes > slot_bytes:
        columns_per_piece = max(1, slot_bytes // itemsize // CHUNK_ELEMENTS) * CHUNK_ELEMENTS
    for first, last in _union((region.top, region.bottom) for region in regions):
        inside = [region for region in regions if region.top < last and region.bottom > first]
        for top in range(first, last, rows_per_piece):
            bottom = min(top + rows_per_piece, last)
            rows = [region for region in inside if region.top < bottom and region.bottom > top]
            for left in range(0, columns, columns_per_piece):
                right = min(left + columns_per_piece, columns)
                clipped = tuple(_clip(region, top, bottom, left, right) for region in rows)
                live = tuple(region for region in clipped if region.left < region.right)
                length = ((bottom - top - 1) * columns + (right - left)) * itemsize
                piece = Piece(0, row_bytes, tensor.dtype, top, bottom, left, right, live)
                yield tensor.path, tensor.offset + (top * columns + left) * itemsize, length, piece


def _clip(region: Region, top: int, bottom: int, left: int, right: int) -> Region:
    new_top, new_left = max(region.top, top), max(region.left, left)
    return replace(
        region,
        top=new_top,
        bottom=min(region.bottom, bottom),
        left=new_left,
        right=min(region.right, right),
        row_unit=region.row_unit + new_top - region.top,
        column_unit=region.column_unit + new_left - region.left,
    )


def _union(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted disjoint intervals that cover the same numbers; touching ones are joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(set(intervals)):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _join(extents: Sequence[tuple[Path, int, int, Piece]], slot_bytes: int) -> Iterator[Slot]:
    """Join pieces that lie next to each other in one file. Extents come sorted by file and offset."""
    path: Path | None = None
    start = stop = 0
    pieces: list[Piece] = []
    for file, offset, length, piece in extents:
        gap = offset - stop
        near = file == path and 0 <= gap * GAP_SHARE <= stop - start
        if not near or offset + length - start > slot_bytes:
            if path is not None:
                yield Slot(path, start, stop - start, tuple(pieces))
            path, start, pieces = file, offset, []
        stop = offset + length
        pieces.append(replace(piece, offset=offset - start))
    if path is not None:
        yield Slot(path, start, stop - start, tuple(pieces))
