"""An index of the fingerprint files below a directory, so that one suspect meets ten thousand references without
opening ten thousand files.

It is derived and disposable. It lives in the user's cache, not in the store: a store stays a directory of fingerprints
and nothing else, may be read-only, and takes no stale index along when it is copied. Where the cache cannot be written
the same arrays are built in memory, for this run alone.

The index is a set of segments (:mod:`weightprint.index_file`), each of them written once, under a temporary name, and
renamed. An entry counts only while its file has the size, times and inode that it had when it was packed. Files
without such an entry are packed into a new segment, which takes along smaller ones that are less than half full; one
of which less than half still counts goes, and so does one that is damaged or of another version. Two processes that
do this at once write two segments that hold the same; the first by name is used.

**Never trusted over the fingerprints.** Whatever the index finds is computed again from the fingerprint files, whose
digests are checked, and that result counts (:mod:`weightprint.match`). So the figures of a finding are those of the
files. How many pairs count as tested, and the background of the screen, come from the index: a wrong one could hide a
relation, and could make Holm's correction too small. That is what the checksums are for, of header and figures when a
segment is opened and of the codes when they are used. A file that was changed in place within one tick of the file
system's clock, and to the same size, would be missed as well, but not where something is found in it: then its digest
is compared, the segment goes, and all that it held is read from the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, overload

import numpy as np

from weightprint import index_file
from weightprint.atomic import TEMPORARY_SUFFIX
from weightprint.compare.packed import DamagedCodes, Packed, ShapeClass, classes_of, pack
from weightprint.compare.prepared import prepare
from weightprint.data import FLOAT32, Fingerprint, MatrixStats
from weightprint.errors import Notice, StoreError
from weightprint.fingerprint_file import from_bytes, read_all, read_content
from weightprint.index_file import DamagedSegment, Entry, Segment, State

FEWEST_FILES = 64
"""Fewer fingerprints are read as fast as an index of them."""

LEFT_SECONDS = 24 * 3600
"""After so long nobody writes any more at a segment that was begun."""

SEGMENT_FILES = 4096
"""Fingerprints of a segment at most: what is packed in memory before it is written, some 64 KiB each."""


@dataclass(frozen=True)
class Stored:
    """Where a fingerprint comes from: an entry of a segment, in the file ``file``."""

    file: Path
    segment: Segment
    number: int

    @property
    def entry(self) -> Entry:
        """Its entry."""
        return self.segment.entries[self.number]

    def whole(self) -> Fingerprint:
        """The fingerprint as its file has it now; raises StoreError."""
        return from_bytes(read_content(self.file), self.file)

    def checked(self) -> Fingerprint:
        """The fingerprint of its file; raises DamagedCodes if that is not the file that was packed, StoreError."""
        content = read_content(self.file)
        if hashlib.sha256(content).hexdigest() != self.entry.digest and self.segment.path is not None:
            raise DamagedCodes(str(self.segment.path))
        return from_bytes(content, self.file)


class StoredMatrices(Sequence[MatrixStats]):
    """The matrices of a stored fingerprint, read from its file when they are looked at; how many there are is known."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return self.stored.entry.matrices

    @overload
    def __getitem__(self, index: int) -> MatrixStats: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[MatrixStats, ...]: ...
    def __getitem__(self, index: int | slice) -> MatrixStats | tuple[MatrixStats, ...]:
        return self.stored.whole().matrices[index]

    def __iter__(self) -> Iterator[MatrixStats]:
        return iter(self.stored.whole().matrices)


class StoredEnergies(Mapping[tuple[str, int, str], FLOAT32]):
    """The unit energies of a stored fingerprint, likewise."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def __getitem__(self, key: tuple[str, int, str]) -> FLOAT32:
        return self.stored.whole().energies[key]

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        return iter(self.stored.whole().energies)

    def __len__(self) -> int:
        return len(self.stored.whole().energies)


@dataclass(frozen=True)
class MatrixFigures:
    """What a report says of the matrices of a fingerprint."""

    count: int
    non_finite: int
    dtypes: tuple[str, ...]


def stored_of(fingerprint: Fingerprint) -> Stored | None:
    """Where a fingerprint of the index comes from; None for one that is in memory."""
    matrices: object = fingerprint.matrices
    return matrices.stored if isinstance(matrices, StoredMatrices) else None


def whole(fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint with everything in memory, under the same name; raises StoreError."""
    stored = stored_of(fingerprint)
    return fingerprint if stored is None else replace(stored.whole(), name=fingerprint.name)


def checked(fingerprint: Fingerprint) -> Fingerprint:
    """The same for one whose codes were used; raises DamagedCodes if they are of another file, StoreError."""
    stored = stored_of(fingerprint)
    return fingerprint if stored is None else replace(stored.checked(), name=fingerprint.name)


def matrix_figures(fingerprint: Fingerprint) -> MatrixFigures:
    """How many matrices, how many elements that are not finite, and which dtypes; opens no file."""
    stored = stored_of(fingerprint)
    if stored is not None:
        return MatrixFigures(stored.entry.matrices, stored.entry.non_finite, stored.entry.dtypes)
    matrices = fingerprint.matrices
    return MatrixFigures(
        count=len(matrices),
        non_finite=sum(matrix.non_finite for matrix in matrices),
        dtypes=tuple(sorted({matrix.dtype for matrix in matrices})),
    )


def cache_of(root: Path) -> Path:
    """The directory of the index of the fingerprints below ``root``."""
    from platformdirs import user_cache_path

    key = hashlib.sha256(os.path.realpath(root).encode(errors="surrogateescape")).hexdigest()[:16]
    return user_cache_path("weightprint") / "index" / key


def fingerprints_below(root: Path, files: Sequence[Path]) -> tuple[list[Fingerprint], list[Notice]]:
    """The fingerprints in ``files``, all below ``root``, in their order, and a notice for each that cannot be read.
    Many come from the index, which is brought up to date; few are read."""
    if len(files) < FEWEST_FILES:
        return read_all(files)
    cache = cache_of(root)
    names = {file.relative_to(root).as_posix(): file for file in files}
    states = {name: state for name, file in names.items() if (state := _state(file)) is not None}
    known: dict[str, tuple[Segment, int]] = {}
    kept: list[tuple[Path, dict[str, tuple[Segment, int]]]] = []
    for path, segment in _segments(cache):
        live = {
            entry.file: (segment, number)
            for number, entry in enumerate(segment.entries)
            if states.get(entry.file) == entry.state and entry.file not in known
        }
        if 2 * len(live) < len(segment.entries):
            discard(path)
        else:
            known.update(live)
            kept.append((path, live))
    missing = [name for name in names if name not in known]
    replaced: list[Path] = []
    for path, live in sorted(kept, key=lambda one: len(one[1])) if missing else ():
        if len(live) <= len(missing) and 2 * len(live) < SEGMENT_FILES:
            missing += live
            replaced.append(path)
            for name in live:
                del known[name]
    notices: list[Notice] = []
    for start in range(0, len(missing), SEGMENT_FILES):
        some = missing[start : start + SEGMENT_FILES]
        segment, own = build({name: (names[name], states.get(name, (0, 0, 0, 0))) for name in some})
        notices += own
        segment = _saved(cache, segment)
        known.update({entry.file: (segment, number) for number, entry in enumerate(segment.entries)})
    for path in replaced:
        discard(path)
    found = [light(names[name], *known[name]) for name in names if name in known]
    return found, notices


def build(files: Mapping[str, tuple[Path, State]]) -> tuple[Segment, list[Notice]]:
    """A segment in memory of the fingerprint files ``files``, by the names of their entries."""
    entries: list[Entry] = []
    packed: list[tuple[int, Packed]] = []
    notices: list[Notice] = []
    for name, (file, state) in files.items():
        try:
            content = read_content(file)
            fingerprint = from_bytes(content, file)
        except StoreError as error:
            notices.append(error.notice())
            continue
        ready = prepare(fingerprint)
        figures = matrix_figures(fingerprint)
        if (one := pack(ready)) is not None:
            packed.append((len(entries), one))
        entries.append(
            Entry(
                file=name,
                state=state,
                digest=hashlib.sha256(content).hexdigest(),
                light=replace(fingerprint, matrices=(), energies={}),
                unused=ready.unused,
                matrices=figures.count,
                non_finite=figures.non_finite,
                dtypes=figures.dtypes,
            )
        )
    return Segment(tuple(entries), tuple(classes_of(packed))), notices


def ready_classes(sources: Sequence[Stored | None]) -> list[ShapeClass]:
    """The classes of the segments of ``sources``, whose members are places in it; -1 for an entry that is not there."""
    numbers: dict[int, dict[int, int]] = {}
    segments: dict[int, Segment] = {}
    for number, stored in enumerate(sources):
        if stored is not None:
            segments[id(stored.segment)] = stored.segment
            numbers.setdefault(id(stored.segment), {})[stored.number] = number
    classes = []
    for key, segment in segments.items():
        number_of = np.full(len(segment.entries), -1, np.int64)
        number_of[list(numbers[key])] = list(numbers[key].values())
        classes += [replace(own, members=number_of[own.members]) for own in segment.classes]
    return classes


def discard(path: Path) -> None:
    """Remove a segment, if it can be."""
    with contextlib.suppress(OSError):
        path.unlink()


def _segments(cache: Path) -> Iterator[tuple[Path, Segment]]:
    """The segments that can be used, by name; those that cannot are removed, and so is what a process left that was
    killed while it wrote one."""
    try:
        paths = sorted(cache.glob(f"*{index_file.SUFFIX}"))
        for leftover in cache.glob(f"*{TEMPORARY_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process may have finished it
                if leftover.stat().st_mtime < time.time() - LEFT_SECONDS:
                    leftover.unlink()
    except OSError:
        return
    for path in paths:
        try:
            yield path, index_file.read(path)
        except DamagedSegment:
            discard(path)
        except OSError:
            continue


def _saved(cache: Path, segment: Segment) -> Segment:
    """The segment as it lies in the cache now; itself where it cannot be kept there."""
    if not segment.entries:
        return segment
    path = cache / f"{secrets.token_hex(8)}{index_file.SUFFIX}"
    temporary = path.with_suffix(f".{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        index_file.write(temporary, segment)
        temporary.replace(path)
        return index_file.read(path)
    except (OSError, DamagedSegment):
        discard(temporary)
        return segment
    except BaseException:
        discard(temporary)
        raise


def light(file: Path, segment: Segment, number: int) -> Fingerprint:
    """What the index knows of a fingerprint; the rest is read from its file where it is looked at."""
    stored = Stored(file, segment, number)
    matrices = cast("tuple[MatrixStats, ...]", StoredMatrices(stored))
    return replace(stored.entry.light, matrices=matrices, energies=StoredEnergies(stored))


def _state(file: Path) -> State | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
