"""The .weightprint file: a safetensors container that any tool can open; it holds statistics and no weight.

Tensors: ``moments`` float64 [matrices, 8] with the columns of MOMENT_COLUMNS, ``energies`` float32 [units], the unit
energies of all (stack, layer, channel) entries one after the other in the order of the metadata's ``units``. Metadata:
one key ``weightprint`` with a JSON text (schema weightprint.fingerprint/1). ``digest`` is the SHA-256 of that JSON with
an empty digest and of both tensors.

A reader accepts a file only if the digest holds and writing what was read gives the same bytes again: so every
flipped bit is found, padding included. A newer schema is refused, never guessed. The same fingerprint gives the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightprint.data import Bytes, Coverage, Declared, Fingerprint, MatrixStats, SourceFile
from weightprint.errors import Notice, StoreError
from weightprint.formats.opened import is_file
from weightprint.reading import Read

SUFFIX = ".weightprint"
SCHEMA = "weightprint.fingerprint"
VERSION = 1
MOMENT_COLUMNS = ("count", "mean", "std", "skewness", "kurtosis", "abs_max", "zeros", "non_finite")
MAX_BYTES = 2**30
_MATRIX_FIELDS = tuple(field.name for field in fields(MatrixStats))


def to_document(fingerprint: Fingerprint) -> dict[str, Any]:
    """The fingerprint as the JSON document of ``show --json``, without energies. Figures that do not exist are null."""
    declared = [asdict(own) for own in fingerprint.declared]
    return {
        "schema": f"{SCHEMA}/{VERSION}",
        "name": fingerprint.name,
        "path": fingerprint.path,
        "status": fingerprint.status,
        "code": fingerprint.code,
        "reason": fingerprint.reason,
        "matrices": [_matrix_document(matrix) for matrix in fingerprint.matrices],
        "not_understood": [
            {"tensor": notice.tensor, "reason": notice.reason, "code": notice.code}
            for notice in fingerprint.coverage.not_understood
        ],
        "bytes": asdict(fingerprint.bytes),
        "coverage": {"found": fingerprint.coverage.found, "understood": fingerprint.coverage.understood},
        "sources": [asdict(source) for source in fingerprint.sources],
        "notices": [asdict(notice) for notice in fingerprint.notices],
        "backend": fingerprint.backend,
        "tool_version": fingerprint.tool_version,
        **_feed_forward_document(fingerprint.feed_forward),
        # Absent where nothing is declared, as in the files of older versions.
        **({"declared": declared} if declared else {}),
    }


def _feed_forward_document(coverage: Coverage | None) -> dict[str, Any]:
    """Fields that only a fingerprint has of which more than attention was read: one of attention keeps its bytes."""
    if coverage is None:
        return {}
    figures = {"found": coverage.found, "understood": coverage.understood}
    not_understood = [
        {"tensor": notice.tensor, "reason": notice.reason, "code": notice.code} for notice in coverage.not_understood
    ]
    return {"read": Read.all.value, "feed_forward": {**figures, "not_understood": not_understood}}


def _matrix_document(matrix: MatrixStats) -> dict[str, Any]:
    # Not asdict, which copies every value: a store of ten thousand would take minutes more.
    values = ((name, getattr(matrix, name)) for name in _MATRIX_FIELDS)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values}


def to_bytes(fingerprint: Fingerprint) -> bytes:
    """The file's content."""
    from safetensors.numpy import save

    keys = sorted(fingerprint.energies)
    moments = np.array(
        [[getattr(matrix, column) for column in MOMENT_COLUMNS] for matrix in fingerprint.matrices], dtype=np.float64
    ).reshape(-1, len(MOMENT_COLUMNS))
    energies = [np.asarray(fingerprint.energies[key], dtype=np.float32) for key in keys]
    tensors: dict[str, npt.NDArray[Any]] = {
        "moments": moments,
        "energies": np.concatenate(energies) if energies else np.zeros(0, np.float32),
    }
    document = to_document(fingerprint)
    document["units"] = [[*key, len(values)] for key, values in zip(keys, energies, strict=True)]
    document["digest"] = _digest(document, tensors)
    return bytes(save(tensors, metadata={"weightprint": _text(document)}))


def from_bytes(content: bytes, path: Path) -> Fingerprint:
    """Parse a file's content; raises StoreError E_FINGERPRINT_CORRUPT or E_FINGERPRINT_VERSION naming ``path``."""
    try:
        document, tensors = _parse(content)
        _require_version(document.get("schema"), path)
        fingerprint = _from_document(document, tensors)
        whole = to_bytes(fingerprint) == content
    except StoreError:
        raise
    except Exception:  # noqa: BLE001  a damaged file can fail anywhere below
        whole = False
    if not whole:
        message = "is damaged (its digest or canonical form does not match); delete it and scan the checkpoint again"
        raise StoreError("E_FINGERPRINT_CORRUPT", message, path=path)
    return fingerprint


def is_fingerprint(path: Path) -> bool:
    """Whether ``path`` is a fingerprint file by its name."""
    return path.suffix == SUFFIX and is_file(path)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read one fingerprint file; raises StoreError."""
    return from_bytes(read_content(path), path)


def read_all(files: Iterable[Path]) -> tuple[list[Fingerprint], list[Notice]]:
    """The fingerprints in ``files``, and a notice for each that cannot be read."""
    fingerprints: list[Fingerprint] = []
    notices: list[Notice] = []
    for file in files:
        try:
            fingerprints.append(read_fingerprint(file))
        except StoreError as error:
            notices.append(error.notice())
    return fingerprints, notices


def read_content(path: Path) -> bytes:
    """The bytes of one fingerprint file, not parsed yet; raises StoreError."""
    try:
        if not path.is_file():
            raise StoreError("E_NOT_REGULAR", "is not a regular file; it was not opened", path=path)
        if path.stat().st_size > MAX_BYTES:
            raise StoreError("E_FINGERPRINT_CORRUPT", "is too large to be a fingerprint; delete it", path=path)
        return path.read_bytes()
    except OSError as error:
        message = f"cannot be read ({error.strerror}); check the disk and the permissions"
        raise StoreError("E_UNREADABLE", message, path=path) from None


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    from safetensors.numpy import load

    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["weightprint"]), tensors


def _require_version(schema: object, path: Path) -> None:
    name, _, version = str(schema).partition("/")
    if name == SCHEMA and version.isdecimal() and int(version) > VERSION:
        message = (
            f"was written by a newer version (schema {schema}, this one reads up to {VERSION}); upgrade weightprint"
        )
        raise StoreError("E_FINGERPRINT_VERSION", message, path=path)
    if schema != f"{SCHEMA}/{VERSION}":
        raise ValueError(schema)


def _from_document(document: dict[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Fingerprint:
    matrices = tuple(
        _matrix(entry, row) for entry, row in zip(document["matrices"], tensors["moments"].tolist(), strict=True)
    )
    notices = tuple(Notice(**entry) for entry in document["notices"])
    by_key = {(notice.tensor, notice.reason, notice.code): notice for notice in reversed(notices)}
    not_understood = tuple(by_key[_key(entry)] for entry in document["not_understood"])
    blocks = document.get("feed_forward")
    return Fingerprint(
        name=document["name"],
        path=document["path"],
        status=document["status"],
        code=document["code"],
        reason=document["reason"],
        matrices=matrices,
        energies=_energies(document["units"], tensors["energies"]),
        coverage=_coverage(document["coverage"], not_understood),
        sources=tuple(SourceFile(**source) for source in document["sources"]),
        bytes=Bytes(**document["bytes"]),
        notices=notices,
        backend=document["backend"],
        tool_version=document["tool_version"],
        feed_forward=None
        if blocks is None
        else _coverage(blocks, tuple(by_key[_key(e)] for e in blocks["not_understood"])),
        declared=tuple(Declared(**own) for own in document.get("declared", ())),
    )


def _coverage(entry: Mapping[str, Any], not_understood: tuple[Notice, ...]) -> Coverage:
    return Coverage(entry["found"], entry["understood"], not_understood)


def _key(entry: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return entry["tensor"], entry["reason"], entry["code"]


def _matrix(entry: Mapping[str, Any], row: list[float]) -> MatrixStats:
    """The tensor is the truth for the figures: JSON has no nan."""
    figures = dict(zip(MOMENT_COLUMNS, row, strict=True))
    whole = {column: int(figures[column]) for column in ("count", "zeros", "non_finite")}
    names = {"tensors": tuple(entry["tensors"]), "shape": (entry["shape"][0], entry["shape"][1])}
    return MatrixStats(**{**entry, **figures, **whole, **names})


def _energies(
    units: list[list[Any]], values: npt.NDArray[np.float32]
) -> dict[tuple[str, int, str], npt.NDArray[np.float32]]:
    energies = {}
    start = 0
    for stack, layer, channel, count in units:
        energies[stack, layer, channel] = values[start : start + count]
        start += count
    if start != len(values):
        raise ValueError("energies left over")
    return energies


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(_text({**document, "digest": ""}).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()
