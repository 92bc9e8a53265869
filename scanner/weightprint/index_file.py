"""A segment of the index: packed codes of some fingerprint files, in one file that is never changed.

Layout: 64 bytes (magic, lengths of header and figures, digest), the header (JSON: which files, which shapes), the
figures (standard deviations, digests, sums of codes), and the codes, int8, array by array on multiples of 64 bytes.
Where each array lies follows from the shapes, so no offset can lie. Validated in this order: size, magic, lengths,
digest of lengths, header and figures, schema, size of the whole, members. Codes are read when they are multiplied, not
mapped: a file that is cut off meanwhile is a damaged one, and not the end of the process.

The digest covers all but the codes, which may be many gigabytes. For these the figures hold the sum of every
fingerprint's 64-bit words modulo 2^64, checked on the bytes that are about to be multiplied: any flipped bit changes
it, and the check costs a tenth of the product.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from weightprint import __version__
from weightprint.compare.packed import INT8, DamagedCodes, Shape, ShapeClass, word_sums
from weightprint.compare.prepared import GroupShape
from weightprint.compare.units import LeftOut
from weightprint.data import Bytes, Coverage, Declared, Fingerprint, SourceFile
from weightprint.errors import Notice

SCHEMA = "weightprint.index/3"
SUFFIX = ".segment"
_MAGIC = b"weightprint.idx\n"
_PREFIX = struct.Struct("<16sQQ32s")
_ALIGNED = 64

State = tuple[int, int, int, int]
"""Size, time of modification and of change in ns, and inode of a file: what tells whether it is still the same."""


class DamagedSegment(Exception):
    """A file that is no segment of this version, or not what was written."""


@dataclass(frozen=True)
class Entry:
    """One fingerprint file: its path below the indexed directory, its state and the SHA-256 of its content when it was
    packed; and what a report says of it, so that no report opens the file."""

    file: str
    state: State
    digest: str
    light: Fingerprint
    unused: tuple[LeftOut, ...]
    matrices: int
    non_finite: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """Entries, and the classes of those that are regular; members of a class are numbers of entries."""

    entries: tuple[Entry, ...]
    classes: tuple[ShapeClass, ...]
    path: Path | None = None
    """Its file; None while it is in memory only."""


def write(path: Path, segment: Segment) -> None:
    """Write a segment under a name that nobody reads yet; raises OSError."""
    header = json.dumps(_header(segment), separators=(",", ":")).encode()
    figures = b"".join(_figure_bytes(segment))
    lengths = (len(header), len(figures))
    with path.open("xb") as file:
        file.write(_PREFIX.pack(_MAGIC, *lengths, _digest(lengths, header, figures)))
        file.write(header)
        file.write(figures)
        for codes in (codes for own in segment.classes for codes in own.codes):
            file.write(bytes(-file.tell() % _ALIGNED))
            file.write(np.ascontiguousarray(codes[:]).data)


class _Opened:
    """An open file, closed when nobody holds it any more; raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True)
class StoredCodes:
    """Codes int8 [members, layers, units] from byte ``offset`` of ``file``, read where they are sliced. The file stays
    open as long as somebody holds them, so that another process may replace it."""

    shape: tuple[int, int, int]
    file: _Opened
    offset: int

    def __getitem__(self, rows: slice) -> INT8:
        """Rows of neighbours; raises DamagedCodes if they are not there any more."""
        first, stop, _ = rows.indices(self.shape[0])
        size = self.shape[1] * self.shape[2]
        content = bytearray((stop - first) * size)
        view, done = memoryview(content), 0
        while done < len(content):
            try:
                count = os.preadv(self.file.descriptor, [view[done:]], self.offset + first * size + done)
            except OSError:
                count = 0
            if count == 0:
                raise DamagedCodes(str(self.file.path))
            done += count
        return np.frombuffer(content, np.int8).reshape(stop - first, *self.shape[1:])


def read(path: Path) -> Segment:
    """Read all of a segment but its codes; raises DamagedSegment, or OSError."""
    opened = _Opened(path)
    try:
        with open(opened.descriptor, "rb", closefd=False) as file:
            return _parse(file, opened)
    except OSError:
        raise
    except Exception:  # noqa: BLE001  a damaged file, or a hostile one, can fail anywhere
        raise DamagedSegment(str(path)) from None


def _parse(file: BinaryIO, opened: _Opened) -> Segment:
    path, found = opened.path, os.fstat(opened.descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")
    whole = found.st_size
    magic, header_length, figures_length, digest = _PREFIX.unpack(file.read(_PREFIX.size))
    end = _PREFIX.size + header_length + figures_length
    if magic != _MAGIC or end > whole:
        raise ValueError("not a segment, or cut off")
    header, figures = file.read(header_length), file.read(figures_length)
    if digest != _digest((header_length, figures_length), header, figures):
        raise ValueError("damaged")
    document = json.loads(header)
    if (document["schema"], document["tool_version"]) != (SCHEMA, __version__):
        raise ValueError("of another version")
    entries = tuple(_entry(entry) for entry in document["entries"])
    classes = []
    at, codes_at = 0, end
    for own in document["classes"]:
        shape, members = _shape(own["shape"]), np.array(own["members"], np.int64)
        count = len(members)
        if len(set(own["members"])) != count or (count and not 0 <= members.min() <= members.max() < len(entries)):
            raise ValueError("members that are not there")
        points, at = _array(figures, at, (count, shape.points), np.float64)
        deviations, at = _array(figures, at, (count,), np.uint64)
        codes, sums = [], []
        for group, block in zip(shape.groups, shape.blocks, strict=True):
            own_sums, at = _array(figures, at, (count,), np.uint64)
            sums.append(own_sums)
            codes_at += -codes_at % _ALIGNED
            size = (count, len(group.layers), group.units if block else 0)
            if min(size) < 0:
                raise ValueError("a shape that cannot be")
            codes.append(StoredCodes(size, opened, codes_at))
            codes_at += math.prod(size)
        classes.append(ShapeClass(shape, members, tuple(codes), points, deviations, tuple(sums), str(path)))
    if at != len(figures) or codes_at != whole:
        raise ValueError("cut off, or something left over")
    return Segment(entries, tuple(classes), path)


def _array(content: bytes, at: int, shape: tuple[int, ...], kind: type[Any]) -> tuple[npt.NDArray[Any], int]:
    count = int(np.prod(shape))
    end = at + count * np.dtype(kind).itemsize
    if end > len(content):
        raise ValueError("cut off")
    return np.frombuffer(content, kind, count, at).reshape(shape), end


def _digest(lengths: tuple[int, int], header: bytes, figures: bytes) -> bytes:
    digest = hashlib.blake2b(struct.pack("<QQ", *lengths), digest_size=32)
    digest.update(header)
    digest.update(figures)
    return digest.digest()


def _figure_bytes(segment: Segment) -> Iterator[bytes]:
    for own in segment.classes:
        yield own.points.tobytes()
        yield own.deviations.tobytes()
        for codes in own.codes:
            yield word_sums(codes[:]).tobytes()


def _header(segment: Segment) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "entries": [_entry_document(entry) for entry in segment.entries],
        "classes": [{"shape": asdict(own.shape), "members": own.members.tolist()} for own in segment.classes],
    }


def _shape(document: dict[str, Any]) -> Shape:
    return Shape(
        groups=tuple(
            GroupShape(**{**group, "layers": tuple(group["layers"]), "positions": tuple(group["positions"])})
            for group in document["groups"]
        ),
        blocks=tuple(document["blocks"]),
        stacks=tuple((name, depth) for name, depth in document["stacks"]),
        curves=tuple((stack, role, tuple(positions)) for stack, role, positions in document["curves"]),
    )


def _entry_document(entry: Entry) -> dict[str, Any]:
    light = entry.light
    return {
        "file": entry.file,
        "state": entry.state,
        "digest": entry.digest,
        "identity": [light.name, light.path, light.status, light.code, light.reason, light.backend, light.tool_version],
        "coverage": [light.coverage.found, light.coverage.understood],
        "not_understood": [light.notices.index(notice) for notice in light.coverage.not_understood],
        "feed_forward": None if light.feed_forward is None else _blocks_document(light.feed_forward, light.notices),
        "sources": [[s.name, s.size, s.mtime_ns, s.format, s.header_digest] for s in light.sources],
        "bytes": [light.bytes.files, light.bytes.selected, light.bytes.read],
        "notices": [[n.code, n.reason, n.path, n.tensor] for n in light.notices],
        "declared": [[own.source, own.name] for own in light.declared],
        "unused": [[left.stack, left.layers, left.why, left.channel] for left in entry.unused],
        "matrices": [entry.matrices, entry.non_finite, list(entry.dtypes)],
    }


def _blocks_document(blocks: Coverage, notices: Sequence[Notice]) -> list[Any]:
    return [blocks.found, blocks.understood, [notices.index(notice) for notice in blocks.not_understood]]


def _blocks(entry: list[Any] | None, notices: Sequence[Notice]) -> Coverage | None:
    return None if entry is None else Coverage(entry[0], entry[1], tuple(notices[at] for at in entry[2]))


def _entry(document: dict[str, Any]) -> Entry:
    name, path, status, code, reason, backend, tool_version = document["identity"]
    size, mtime_ns, ctime_ns, inode = document["state"]
    matrices, non_finite, dtypes = document["matrices"]
    found, understood = document["coverage"]
    notices = tuple(Notice(*notice) for notice in document["notices"])
    return Entry(
        file=document["file"],
        state=(size, mtime_ns, ctime_ns, inode),
        digest=document["digest"],
        light=Fingerprint(
            name=name,
            path=path,
            status=status,
            code=code,
            reason=reason,
            matrices=(),
            energies={},
            coverage=Coverage(found, understood, tuple(notices[at] for at in document["not_understood"])),
            sources=tuple(SourceFile(*source) for source in document["sources"]),
            bytes=Bytes(*document["bytes"]),
            notices=notices,
            backend=backend,
            tool_version=tool_version,
            feed_forward=_blocks(document["feed_forward"], notices),
            declared=tuple(Declared(*own) for own in document["declared"]),
        ),
        unused=tuple(LeftOut(*left) for left in document["unused"]),
        matrices=matrices,
        non_finite=non_finite,
        dtypes=tuple(dtypes),
    )
