"""safetensors headers, by the format's specification: 8 bytes of length, that much JSON, then the tensors' bytes.

Validated in this order, each before anything is allocated or believed: length against the cap and the file, UTF-8, JSON
object without duplicate keys, every entry's dtype, shape and offsets, bytes against shape, then the whole file: no
overlap, no hole, nothing missing at the end, nothing left over. A dtype that is not known here keeps its name in
lower case; only its place is checked, since nobody reads it. What the entries hold is never printed but as numbers
and short names.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, TypeGuard

from weightprint.data import TensorSpec
from weightprint.errors import CheckpointError
from weightprint.formats.opened import OpenedFile, is_text

MAX_HEADER = 25 * 2**20
MAX_TENSORS = 1_000_000
MAX_NAME = 4096
MAX_DIMENSIONS = 64

BITS: dict[str, tuple[str, int]] = {
    # dtype in the header: (our name, bits per element)
    "BOOL": ("bool", 8),
    "F4": ("f4", 4),
    "F6_E2M3": ("f6_e2m3", 6),
    "F6_E3M2": ("f6_e3m2", 6),
    "U8": ("u8", 8),
    "I8": ("i8", 8),
    "F8_E5M2": ("f8_e5m2", 8),
    "F8_E4M3": ("f8_e4m3", 8),
    "F8_E8M0": ("f8_e8m0", 8),
    "F8_E4M3FNUZ": ("f8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("f8_e5m2fnuz", 8),
    "I16": ("i16", 16),
    "U16": ("u16", 16),
    "F16": ("f16", 16),
    "BF16": ("bf16", 16),
    "I32": ("i32", 32),
    "U32": ("u32", 32),
    "F32": ("f32", 32),
    "C64": ("c64", 64),
    "F64": ("f64", 64),
    "I64": ("i64", 64),
    "U64": ("u64", 64),
}

KNOWN_NAMES = frozenset(own for own, _ in BITS.values())


def read(file: OpenedFile) -> tuple[tuple[TensorSpec, ...], str]:
    """Tensors in file order and the hex SHA-256 of the header; raises CheckpointError."""
    header, start = _header(file)
    entries = _entries(file, header)
    tensors = sorted(
        (_tensor(file, name, entry, start) for name, entry in entries.items()), key=lambda t: (t.offset, t.nbytes)
    )
    _require_coverage(file, tensors, start)
    return tuple(tensors), hashlib.sha256(header).hexdigest()


def _header(file: OpenedFile) -> tuple[bytes, int]:
    prefix = file.read(0, 8)
    if len(prefix) < 8:
        raise _invalid(file, f"is {file.size} bytes long, too short for a safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > file.size - 8:
        message = f"header of {length} bytes is larger than the file of {file.size} bytes; fetch the file again"
        raise CheckpointError("E_HEADER_LARGE", message, path=file.path)
    if length > MAX_HEADER:
        message = f"header of {length} bytes is larger than the limit of {MAX_HEADER}"
        raise CheckpointError("E_HEADER_LARGE", message, path=file.path)
    return file.read(8, length), 8 + length


def _entries(file: OpenedFile, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _invalid(file, f"header is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(parsed, dict):
        raise _invalid(file, "header is not a JSON object")
    parsed.pop("__metadata__", None)
    if len(parsed) > MAX_TENSORS:
        raise CheckpointError("E_HEADER_LARGE", f"describes {len(parsed)} tensors, limit {MAX_TENSORS}", path=file.path)
    return parsed


def _tensor(file: OpenedFile, name: str, entry: object, start: int) -> TensorSpec:
    if len(name) > MAX_NAME or not is_text(name):
        raise _invalid(file, f"has a tensor name that is no text of up to {MAX_NAME} characters")
    if not isinstance(entry, dict):
        raise _invalid(file, "entry is not an object", name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _invalid(file, "dtype is not a name", name)
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _invalid(file, "shape is not a list of sizes", name)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(file, "data_offsets are not a begin and an end", name)
    begin, end = offsets
    own, bits = BITS.get(dtype, (dtype.lower()[:40], 0))
    if not bits and (own in KNOWN_NAMES or not is_text(own)):
        raise _invalid(file, f"dtype {dtype[:40]!r} is no dtype of safetensors", name)
    expected = math.prod(shape) * bits
    if bits and (expected % 8 or expected // 8 != end - begin):
        raise _invalid(file, f"shape {shape} of {dtype} is not the {end - begin} bytes of its data_offsets", name)
    return TensorSpec(name, tuple(shape), own, file.path, start + begin, end - begin)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry < 2**63 for entry in value)


def _require_coverage(file: OpenedFile, tensors: list[TensorSpec], start: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a hole before it"
            raise _invalid(file, f"at byte {tensor.offset} {what}, which ends at {end}", tensor.name)
        end += tensor.nbytes
    if end > file.size:
        message = f"is {file.size} bytes long, its header describes {end}; fetch the file again"
        raise CheckpointError("E_FILE_TRUNCATED", message, path=file.path)
    if end < file.size:
        raise _invalid(file, f"has {file.size - end} bytes after the last tensor")


def _invalid(file: OpenedFile, message: str, tensor: str | None = None) -> CheckpointError:
    return CheckpointError("E_HEADER_INVALID", message, path=file.path, tensor=tensor)
