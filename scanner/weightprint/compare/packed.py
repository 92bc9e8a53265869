"""Many fingerprints in arrays: those of one shape side by side, so that their comparisons are a few matrix products.

A *shape* is all that decides which tests a pair gets, apart from figures. A fingerprint is *regular* if no figure of
its own changes that: every block is valid, no layer is a copy of another, no channel fails its self-control, and it is
not failed. Regular ones are packed: codes int8 [members, layers, units], standard deviations float64 [members, points].
The others keep their place, are in no class, and are compared one by one.

Codes are in the longest blocks that any other side could ask for; shorter ones are ranked inside them, without loss,
because ranks inside a part follow from ranks inside the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import FLOAT64, INT64, block_length, encode
from weightprint.compare.copies import LayerCopies, layer_copies
from weightprint.compare.prepared import GroupShape, Prepared, UnitGroup
from weightprint.compare.screen import CurvePositions
from weightprint.compare.units import LeftOut

INT8 = npt.NDArray[np.int8]
UINT64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shape:
    """Groups, the length of the blocks that their codes are in (0: no codes), stacks as (name, depth), largest first,
    and curves as (stack, role, positions)."""

    groups: tuple[GroupShape, ...]
    blocks: tuple[int, ...]
    stacks: tuple[tuple[str, int], ...]
    curves: tuple[tuple[str, str, tuple[int, ...]], ...]

    @property
    def points(self) -> int:
        """Standard deviations of all curves."""
        return sum(len(positions) for _, _, positions in self.curves)

    def curve_positions(self) -> CurvePositions:
        """Positions of each curve by (stack, role)."""
        return {(stack, role): positions for stack, role, positions in self.curves}

    def curve_start(self, stack: str, role: str) -> int:
        """Where a curve begins among the points of all."""
        start = 0
        for own_stack, own_role, positions in self.curves:
            if (own_stack, own_role) == (stack, role):
                return start
            start += len(positions)
        raise KeyError((stack, role))


@dataclass(frozen=True)
class Label:
    """What is said of one side in words: its name, its status and why, energies that take no part, copied layers."""

    name: str
    status: str
    reason: str | None
    unused: tuple[LeftOut, ...]
    copies: tuple[LayerCopies, ...] = ()


@dataclass(frozen=True)
class Packed:
    """One regular fingerprint: ``codes`` int8 [layers, units] of each group, ``points`` float64, and a digest of all
    its standard deviations, by which fingerprints that may be equal to the bit are told."""

    shape: Shape
    codes: tuple[INT8, ...]
    points: FLOAT64
    deviations: int


class Codes(Protocol):
    """Codes int8 [members, layers, units], in memory or where they are read from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> INT8: ...


@dataclass(frozen=True)
class ShapeClass:
    """Fingerprints of one shape: their numbers int64 [members], ``codes`` int8 [members, layers, units] of each group
    (in memory or in a file), ``points`` float64 [members, points], ``deviations`` uint64 [members].

    A number of -1 is that of a member that takes no part. ``sums`` uint64 [members] of each group are what the codes of
    a file must add up to (:func:`word_sums`), ``source`` is the file; codes in memory have none.
    """

    shape: Shape
    members: INT64
    codes: tuple[Codes, ...]
    points: FLOAT64
    deviations: UINT64
    sums: tuple[UINT64, ...] = ()
    source: str = ""

    def taken(self, group: int, rows: INT64) -> INT8:
        """Codes of a group of sorted ``rows``, which lie in one tile; raises DamagedCodes."""
        first, last = int(rows[0]), int(rows[-1])
        codes = self.codes[group][first : last + 1]
        if len(codes) > len(rows):
            codes = codes[rows - first]
        if self.sums and not np.array_equal(word_sums(codes), self.sums[group][rows]):
            raise DamagedCodes(self.source)
        return codes


class DamagedCodes(Exception):
    """Codes of the file ``source`` that are not those that were written."""

    def __init__(self, source: str) -> None:
        super().__init__(f"{source} is damaged")
        self.source = source


@dataclass(frozen=True)
class Collection:
    """Everything that is compared: a label for each fingerprint, and the regular ones in classes.

    ``class_of`` int64 [fingerprints] is the number of a class, -1 for one that is not regular; ``row_of`` its row
    there.
    """

    labels: Sequence[Label]
    classes: tuple[ShapeClass, ...]
    class_of: INT64
    row_of: INT64


def label(prepared: Prepared) -> Label:
    """The words of one side."""
    fingerprint = prepared.fingerprint
    return Label(fingerprint.name, fingerprint.status, fingerprint.reason, prepared.unused, layer_copies(prepared))


def pack(prepared: Prepared) -> Packed | None:
    """One fingerprint ready to be put beside others of its shape; None if it is not regular."""
    fingerprint = prepared.fingerprint
    if fingerprint.status == "failed" or not fingerprint.matrices:
        return None
    if any(group.control.failed or group.control.copies for group in prepared.groups):
        return None
    packed = [_packed_codes(group) for group in prepared.groups]
    codes = [(block, values) for block, values in packed if values is not None]
    if len(codes) < len(packed):
        return None
    keys = sorted(prepared.curves)
    shape = Shape(
        groups=tuple(_shape(group) for group in prepared.groups),
        blocks=tuple(block for block, _ in codes),
        stacks=tuple((stack.name, stack.depth) for stack in prepared.stacks),
        curves=tuple((*key, prepared.curves[key].positions) for key in keys),
    )
    points = np.concatenate([np.zeros(0), *(prepared.curves[key].values for key in keys)])
    return Packed(shape, tuple(values for _, values in codes), points, digest64(prepared.deviations))


def digest64(content: bytes) -> int:
    """64 bits of a digest; equal contents have equal ones."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def word_sums(codes: INT8) -> UINT64:
    """The sum of the 64-bit words of each member's codes [members, ...] modulo 2^64: any flipped bit changes it."""
    rows = np.ascontiguousarray(codes).reshape(len(codes), -1)
    if rows.shape[1] % 8:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    return np.asarray(rows.view("<u8").sum(axis=1, dtype=np.uint64))


def classes_of(packed: Iterable[tuple[int, Packed]]) -> list[ShapeClass]:
    """Regular fingerprints, given with their numbers, by shape."""
    numbers: dict[Shape, list[int]] = {}
    rows: dict[Shape, list[Packed]] = {}
    for number, one in packed:
        numbers.setdefault(one.shape, []).append(number)
        rows.setdefault(one.shape, []).append(one)
    return [_class(shape, numbers[shape], rows.pop(shape)) for shape in numbers]


def join(labels: Sequence[Label], classes: Sequence[ShapeClass]) -> Collection:
    """A collection of classes whose members are numbered as ``labels`` are."""
    class_of = np.full(len(labels), -1, np.int64)
    row_of = np.full(len(labels), -1, np.int64)
    for number, own in enumerate(classes):
        rows = np.flatnonzero(own.members >= 0)
        class_of[own.members[rows]] = number
        row_of[own.members[rows]] = rows
    return Collection(labels, tuple(classes), class_of, row_of)


def _class(shape: Shape, numbers: Sequence[int], rows: Sequence[Packed]) -> ShapeClass:
    return ShapeClass(
        shape=shape,
        members=np.array(numbers, np.int64),
        codes=tuple(np.stack([row.codes[group] for row in rows]) for group in range(len(shape.groups))),
        points=np.stack([row.points for row in rows]),
        deviations=np.array([row.deviations for row in rows], np.uint64),
    )


def _packed_codes(group: UnitGroup) -> tuple[int, INT8 | None]:
    """Length of the blocks and codes int8 [layers, units]; no codes if a block is not valid."""
    # A width that the other side knows may ask for longer blocks than an unknown one does.
    block = block_length(group.units, group.head_width or group.units)
    if block < 2:
        return 0, np.zeros((len(group.layers), 0), np.int8)
    codes = encode(group.energies, block) if group.codes is None or group.codes.block != block else group.codes
    return block, codes.values.astype(np.int8) if codes.all_valid else None


def _shape(group: UnitGroup) -> GroupShape:
    return GroupShape(
        stack=group.stack,
        channel=group.channel,
        units=group.units,
        head_width=group.head_width,
        layers=group.layers,
        positions=group.positions,
        depth=group.depth,
    )
