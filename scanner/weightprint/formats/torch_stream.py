"""PyTorch's older format (before 1.6): pickles one after the other, then the storages.

Magic number, protocol version, system information, the object, and the list of storage keys are five pickles; after
them, in the order of the key list, each storage is an 8-byte little-endian element count followed by its bytes. So
every byte range can be computed from the pickles, and no storage needs to be read.
"""

from __future__ import annotations

import hashlib
from typing import Any

from weightprint.data import TensorSpec
from weightprint.errors import CheckpointError, Notice
from weightprint.formats.opened import OpenedFile
from weightprint.formats.pickle_reader import SIZES, Storage, Tensor, read_pickle
from weightprint.formats.state_dict import find_tensors, place_tensors

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
COUNT_BYTES = 8


def read(file: OpenedFile) -> tuple[tuple[TensorSpec, ...], str, tuple[Notice, ...]]:
    """Tensors in file order, the digest of the pickles and counts, notices; raises CheckpointError."""
    magic, offset = read_pickle(file, 0)
    if magic != MAGIC:
        message = "is a pickle, but not one that torch.save wrote; save a state dict with torch.save or as safetensors"
        raise CheckpointError("E_NOT_STATE_DICT", message, path=file.path)
    version, offset = read_pickle(file, offset)
    system, offset = read_pickle(file, offset)
    if version != PROTOCOL or not isinstance(system, dict):
        raise CheckpointError(
            "E_HEADER_INVALID", f"has protocol version {str(version)[:20]}, not {PROTOCOL}", path=file.path
        )
    if system.get("little_endian") is not True:
        message = "was saved on a big-endian machine; save it again on a little-endian one"
        raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
    value, offset = read_pickle(file, offset)
    keys, offset = read_pickle(file, offset)
    digest = hashlib.sha256(file.read(0, offset))
    extents = _extents(file, keys, _storages(value), offset)
    digest.update(repr(sorted(extents.items())).encode())

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in extents:
            raise CheckpointError("E_HEADER_INVALID", f"its storage {storage.key[:50]} is not in the file's key list")
        return extents[storage.key]

    specs, notices = place_tensors(find_tensors(value, file), file, locate)
    return specs, digest.hexdigest(), notices


def _storages(value: Any) -> dict[str, Storage]:
    """Every storage that a tensor anywhere in ``value`` refers to; visited without recursion."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Tensor):
            entry = entry.storage
        if isinstance(entry, Storage):
            found[entry.key] = entry
        elif isinstance(entry, dict | list | tuple) and id(entry) not in seen:
            seen.add(id(entry))
            waiting.extend(entry.values() if isinstance(entry, dict) else entry)
    return found


def _extents(file: OpenedFile, keys: Any, storages: dict[str, Storage], offset: int) -> dict[str, tuple[int, int]]:
    """Key -> (offset, bytes) of every storage, following the counts through the file."""
    if not isinstance(keys, list):
        raise CheckpointError("E_HEADER_INVALID", "its list of storage keys is no list", path=file.path)
    extents: dict[str, tuple[int, int]] = {}
    for key in map(str, keys):
        storage = storages.get(key)
        if storage is None:
            message = (
                f"its storage {key[:50]} belongs to no tensor, so its size is not known; save the state dict alone"
            )
            raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
        count = int.from_bytes(file.read(offset, COUNT_BYTES), "little")
        length = count * SIZES[storage.dtype]
        if offset + COUNT_BYTES + length > file.size:
            message = f"is {file.size} bytes long and ends before storage {key[:50]} does; fetch the file again"
            raise CheckpointError("E_FILE_TRUNCATED", message, path=file.path)
        if count != storage.numel:
            message = f"storage {key[:50]} has {count} elements, its pickle says {storage.numel}"
            raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
        extents[key] = (offset + COUNT_BYTES, length)
        offset += COUNT_BYTES + length
    if offset != file.size:
        raise CheckpointError(
            "E_HEADER_INVALID", f"has {file.size - offset} bytes after the last storage", path=file.path
        )
    return extents
