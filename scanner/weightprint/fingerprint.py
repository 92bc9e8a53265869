"""From one checkpoint to its fingerprint: headers, roles, plan, reduction, moments, in that order.

``read_structure`` reads headers only and imports neither torch nor numba; ``inspect`` and the freshness check stop
there. ``fingerprint_from`` puts together what the engine made of the plan. A fault costs what it touches: a file, a
tensor or a layer; the status and the notices say so. Nothing is scored that was not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightprint import __version__
from weightprint.data import Bytes, Checkpoint, Coverage, Fingerprint, Headers, MatrixStats, SourceFile, Understanding
from weightprint.engine.settings import read_settings
from weightprint.errors import Notice
from weightprint.formats import read_headers
from weightprint.formats.opened import is_directory
from weightprint.plan import Plan, plan_reads
from weightprint.reading import Read
from weightprint.roles import understand

if TYPE_CHECKING:
    from weightprint.engine.collect import Reduction


@dataclass(frozen=True)
class Structure:
    """All that is known of a checkpoint before a weight is read."""

    headers: Headers
    understanding: Understanding
    plan: Plan
    sources: tuple[SourceFile, ...]
    notices: tuple[Notice, ...]
    set_aside: tuple[tuple[Path, str], ...] = ()


def read_structure(checkpoint: Checkpoint, read: Read = Read.attention) -> Structure:
    """Read the headers of ``checkpoint``, find its attention matrices, or all of them, and plan their reads."""
    headers = read_headers(checkpoint)
    understanding = understand(headers.tensors, checkpoint.config, read)
    coverage, feed_forward = (
        own and replace(own, not_understood=_placed(own.not_understood, checkpoint, headers))
        for own in (understanding.coverage, understanding.feed_forward)
    )
    assert coverage is not None
    understanding = replace(
        understanding,
        coverage=coverage,
        notices=_placed(understanding.notices, checkpoint, headers),
        feed_forward=feed_forward,
    )
    notices = (
        *checkpoint.notices,
        *headers.notices,
        *coverage.not_understood,
        *understanding.notices,
        *(feed_forward.not_understood if feed_forward else ()),
    )
    if not notices and not understanding.matrices:
        module = "attention module" if read is Read.attention else "attention module or feed-forward block"
        reason = f"holds no {module} that its tensor names and shapes show, so there is nothing to read"
        notices = (Notice("E_NO_ATTENTION", reason, str(checkpoint.path)),)
    sources = headers.sources + _config_source(checkpoint)
    slot_bytes = read_settings().slot_bytes
    return Structure(
        headers, understanding, plan_reads(understanding.matrices, slot_bytes), sources, notices, checkpoint.set_aside
    )


def fingerprint_from(checkpoint: Checkpoint, structure: Structure, reduction: Reduction) -> Fingerprint:
    """The fingerprint of ``checkpoint`` out of what its matrices were reduced to.

    Faults of the files end in its status and notices.
    """
    from weightprint.moments import matrix_stats

    numbered = [
        (number, matrix) for number, matrix in enumerate(structure.plan.matrices) if number in reduction.moments
    ]
    stats = tuple(matrix_stats(matrix, reduction.moments[number]) for number, matrix in numbered)
    energies = {
        (matrix.stack, matrix.layer, matrix.role): reduction.energies[number].astype(np.float32)
        for number, matrix in numbered
        if number in reduction.energies
    }
    changed = _changed(checkpoint, structure.sources)
    non_finite = _placed(_non_finite(stats), checkpoint, structure.headers)
    notices = (*changed, *structure.notices, *reduction.notices, *non_finite)
    if changed:
        stats, energies = (), {}
    return _fingerprint(checkpoint, structure, stats, energies, reduction.bytes_read, notices, reduction.backend)


def without_weights(checkpoint: Checkpoint, structure: Structure | None, notices: Sequence[Notice]) -> Fingerprint:
    """The fingerprint of a checkpoint of which nothing could be read: failed, with the reasons."""
    known = (*notices, *(structure.notices if structure else checkpoint.notices))
    return _fingerprint(checkpoint, structure, (), {}, 0, known, "")


def source_path(checkpoint: Checkpoint, source: SourceFile) -> Path:
    """Where a source file of ``checkpoint`` lies."""
    base = checkpoint.path if is_directory(checkpoint.path) else checkpoint.path.parent
    return base / source.name


def _fingerprint(
    checkpoint: Checkpoint,
    structure: Structure | None,
    stats: tuple[MatrixStats, ...],
    energies: dict[tuple[str, int, str], np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    bytes_read: int,
    notices: Sequence[Notice],
    backend: str,
) -> Fingerprint:
    status = "failed" if not stats else "partial" if notices else "complete"
    first = notices[0] if notices else None
    sources = structure.sources if structure else ()
    return Fingerprint(
        name=checkpoint.name,
        path=str(checkpoint.path.absolute()),
        status=status,
        code=first.code if first else None,
        reason=first.line() if first else None,
        matrices=stats,
        energies=energies,
        coverage=structure.understanding.coverage if structure else Coverage(0, 0),
        sources=sources,
        bytes=Bytes(
            files=sum(source.size for source in sources if source.format != "config"),
            selected=structure.plan.selected if structure else 0,
            read=bytes_read,
        ),
        notices=tuple(notices),
        backend=backend,
        tool_version=__version__,
        feed_forward=structure.understanding.feed_forward if structure else None,
        declared=checkpoint.declared,
    )


def _config_source(checkpoint: Checkpoint) -> tuple[SourceFile, ...]:
    """config.json decides roles, so it is part of the identity; by content, since a copy of it is the same."""
    if not checkpoint.config:
        return ()
    text = json.dumps(checkpoint.config, sort_keys=True).encode()
    return (SourceFile("config.json", len(text), 0, "config", hashlib.sha256(text).hexdigest()),)


def _changed(checkpoint: Checkpoint, sources: Sequence[SourceFile]) -> tuple[Notice, ...]:
    """Files that are no longer what their header was read from: a fingerprint of a moving file is of nothing."""
    notices = []
    for source in sources:
        if source.format == "config":
            continue
        path = source_path(checkpoint, source)
        try:
            now = path.stat()
        except OSError as error:
            notices.append(Notice("E_CHANGED", f"went away while it was read ({error.strerror})", str(path)))
            continue
        if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
            reason = "changed while it was read; scan again when it is complete"
            notices.append(Notice("E_CHANGED", reason, str(path)))
    return tuple(notices)


def _placed(notices: Sequence[Notice], checkpoint: Checkpoint, headers: Headers) -> tuple[Notice, ...]:
    """Notices about tensors, with the file that holds each; those about no tensor name the checkpoint."""
    files = {tensor.name: str(tensor.path) for tensor in headers.tensors} if notices else {}
    return tuple(
        replace(notice, path=files.get(notice.tensor or "", str(checkpoint.path))) if notice.path is None else notice
        for notice in notices
    )


def _non_finite(stats: Sequence[MatrixStats]) -> tuple[Notice, ...]:
    return tuple(
        Notice(
            "E_NON_FINITE",
            f"{matrix.non_finite} of {matrix.count} weights of layer {matrix.layer} {matrix.role} are NaN or infinite; "
            "they are left out, and so is every unit that holds one",
            tensor=matrix.tensors[0],
        )
        for matrix in stats
        if matrix.non_finite
    )
