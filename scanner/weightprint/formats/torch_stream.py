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
from weightprint.formats.pickle_reader import Storage, read_pickle
from weightprint.formats.state_dict import find_tensors, place_tensors

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
COUNT_BYTES = 8


def read(file: OpenedFile) -> tuple[tuple[TensorSpec, ...], str, tuple[Notice, ...]]:
    """Tensors in file order, the digest of pickles and counts, notices; raises CheckpointError."""
    magic = read_pickle(file, 0)
    if type(magic.value) is not int or magic.value != MAGIC:
        message = "is a pickle, but not one that torch.save wrote; save a state dict with torch.save or as safetensors"
        raise CheckpointError("E_NOT_STATE_DICT", message, path=file.path)
    version = read_pickle(file, magic.end)
    system = read_pickle(file, version.end)
    if type(version.value) is not int or version.value != PROTOCOL or not isinstance(system.value, dict):
        message = f"has no protocol version {PROTOCOL} after its magic number; save it again with torch.save"
        raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
    if system.value.get("little_endian") is not True:
        message = "was saved on a big-endian machine; save it again on a little-endian one"
        raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
    state = read_pickle(file, system.end)
    keys = read_pickle(file, state.end)
    extents = _extents(file, keys.value, state.storages, keys.end)
    digest = hashlib.sha256(file.read(0, keys.end))
    digest.update(repr(sorted(extents.items())).encode())

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in extents:
            raise CheckpointError("E_HEADER_INVALID", f"its storage {storage.key[:50]} is not in the file's key list")
        return extents[storage.key]

    specs, notices = place_tensors(find_tensors(state.value, file), file, locate)
    return specs, digest.hexdigest(), notices


def _extents(file: OpenedFile, keys: Any, storages: dict[str, Storage], offset: int) -> dict[str, tuple[int, int]]:
    """Key -> (offset, bytes) of every storage, following the counts through the file."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise CheckpointError("E_HEADER_INVALID", "its list of storage keys is no list of names", path=file.path)
    extents: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in extents:
            message = f"lists storage {key[:50]} twice, or no tensor refers to it; save the state dict alone"
            raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
        end = offset + COUNT_BYTES + storage.nbytes
        if end > file.size:
            message = f"is {file.size} bytes long, storage {key[:50]} ends at {end}; fetch the file again"
            raise CheckpointError("E_FILE_TRUNCATED", message, path=file.path)
        count = int.from_bytes(file.read(offset, COUNT_BYTES), "little")
        if count != storage.numel:
            message = f"storage {key[:50]} has {count} elements, its pickle says {storage.numel}; fetch the file again"
            raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
        extents[key] = (offset + COUNT_BYTES, storage.nbytes)
        offset = end
    return extents
