"""PyTorch's zip format (since 1.6): ``<root>/data.pkl`` describes tensors, ``<root>/data/<key>`` holds their storages.

The entries are stored, not compressed, so that a tensor is a byte range of the file. An entry that is compressed,
stands twice or lies outside the file is refused: read as it is, it would give wrong weights without an error.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import IO, cast

from weightprint.data import TensorSpec
from weightprint.errors import CheckpointError, Notice
from weightprint.formats.opened import OpenedFile
from weightprint.formats.pickle_reader import Storage, read_pickle
from weightprint.formats.state_dict import find_tensors, place_tensors

LOCAL_HEADER = 30
ENCRYPTED = 0x1
MAX_DIRECTORY = 32 * 2**20


def read(file: OpenedFile) -> tuple[tuple[TensorSpec, ...], str, tuple[Notice, ...]]:
    """Tensors in file order, the digest of pickle and extents, notices; raises CheckpointError."""
    entries = _entries(file)
    root = _root(file, entries)
    _require_little_endian(file, entries.get(f"{root}byteorder"))
    start, length = _extent(file, entries[f"{root}data.pkl"])
    pickle = read_pickle(file, start, length)
    digest = hashlib.sha256(file.read(start, length))
    extents: dict[str, tuple[int, int]] = {}

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in extents:
            entry = entries.get(f"{root}data/{storage.key}")
            if entry is None:
                raise CheckpointError("E_HEADER_INVALID", f"its storage data/{storage.key[:50]} is not in the file")
            extents[storage.key] = _extent(file, entry)
        return extents[storage.key]

    specs, notices = place_tensors(find_tensors(pickle.value, file), file, locate)
    digest.update(repr(sorted(extents.items())).encode())
    return specs, digest.hexdigest(), notices


class _Window(io.RawIOBase):
    """The file as a seekable stream that refuses reads no honest zip directory needs."""

    def __init__(self, file: OpenedFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise OSError(f"a directory of {size} bytes is larger than the limit of {MAX_DIRECTORY}")
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data


def _entries(file: OpenedFile) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(cast(IO[bytes], _Window(file))) as archive:  # it only reads and seeks
            listed = archive.infolist()
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  a broken directory can fail in any way
        message = f"its zip directory cannot be read ({' '.join(str(error).split())[:100]}); fetch the file again"
        raise CheckpointError("E_FILE_TRUNCATED", message, path=file.path) from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise CheckpointError("E_HEADER_INVALID", "its zip directory names an entry twice", path=file.path)
    return entries


def _root(file: OpenedFile, entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder inside the zip that holds everything, with its slash."""
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) == 1:
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            message = "is a TorchScript program, which is not read; save the state dict of the module it was made from"
            raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
        return root
    if entries and all(name.endswith(".npy") for name in entries):
        message = "is a numpy archive, which is not read; convert it to safetensors"
        raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
    message = "is a zip file, but not one that torch.save wrote; convert the checkpoint to safetensors"
    raise CheckpointError("E_FORMAT_UNKNOWN", message, path=file.path)


def _extent(file: OpenedFile, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """(offset, length) of a stored entry's bytes."""
    name = entry.filename[:100]
    if entry.flag_bits & ENCRYPTED or entry.compress_type != zipfile.ZIP_STORED:
        message = f"{name} is compressed or encrypted in the zip; save the checkpoint again with torch.save"
        raise CheckpointError("E_ZIP_COMPRESSED", message, path=file.path)
    header = file.read(entry.header_offset, LOCAL_HEADER) if entry.header_offset >= 0 else b""
    if entry.compress_size != entry.file_size or len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        message = f"{name} is not where the zip directory says; fetch the file again"
        raise CheckpointError("E_HEADER_INVALID", message, path=file.path)
    start = entry.header_offset + LOCAL_HEADER + int.from_bytes(header[26:28], "little")
    start += int.from_bytes(header[28:30], "little")
    if start + entry.file_size > file.size:
        raise CheckpointError("E_FILE_TRUNCATED", f"ends before {name} does; fetch the file again", path=file.path)
    return start, entry.file_size


def _require_little_endian(file: OpenedFile, entry: zipfile.ZipInfo | None) -> None:
    if entry is None:
        return
    start, length = _extent(file, entry)
    order = file.read(start, min(length, 16))
    if order != b"little":
        message = f"was saved with byte order {order!r}; save it again on a little-endian machine"
        raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
