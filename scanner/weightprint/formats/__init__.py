"""Formats: what a file is, told by its content, and the tensors that its header describes. No weight byte is read.

A new format is a row in FORMATS and a module with a ``read``. A fault of one file is a notice; the other files go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightprint.data import Checkpoint, Headers, SourceFile, TensorSpec
from weightprint.errors import CheckpointError, Notice
from weightprint.formats import safetensors, torch_archive, torch_stream
from weightprint.formats.notices import fold
from weightprint.formats.opened import OpenedFile, is_directory, open_file

Read = tuple[tuple[TensorSpec, ...], str, tuple[Notice, ...]]
"""Tensors in file order, hex digest of the header, faults of single tensors."""

HEAD_BYTES = 512
LENGTH_BYTES = 8


@dataclass(frozen=True)
class Format:
    """A format that is read: how its first bytes look, and what reads its header."""

    name: str
    matches: Callable[[bytes], bool]
    read: Callable[[OpenedFile], Read]


@dataclass(frozen=True)
class Refused:
    """A format that is known and not read: how its first bytes look, and what to do."""

    name: str
    matches: Callable[[bytes], bool]
    advice: str


def _read_safetensors(file: OpenedFile) -> Read:
    tensors, digest = safetensors.read(file)
    return tensors, digest, ()


def _is_text(head: bytes) -> bool:
    """No byte below space but white space: the length that opens a safetensors file always holds zeros."""
    return min(head.translate(None, b"\t\n\r\f"), default=32) >= 32


def _is_markup(head: bytes) -> bool:
    return _is_text(head) and head.lstrip()[:1] == b"<"


def _is_safetensors(head: bytes) -> bool:
    return head[4:9] == b"\0\0\0\0{"


FORMATS: tuple[Format | Refused, ...] = (
    # In this order: a safetensors length may look like the first bytes of others, so that the long and certain marks
    # come first; a header that is larger than 4 GB of JSON is still told from noise at the end.
    Refused("GGUF", lambda head: head[:4] == b"GGUF", "scan the float checkpoint that it was made from"),
    Refused(
        "a ggml file",
        lambda head: head[:4] in (b"lmgg", b"fmgg", b"tjgg"),
        "scan the float checkpoint that it was made from",
    ),
    Refused("HDF5", lambda head: head[:8] == b"\x89HDF\r\n\x1a\n", "convert the model to safetensors"),
    Refused("numpy", lambda head: head[:6] == b"\x93NUMPY", "convert the model to safetensors"),
    Format("torch-zip", lambda head: head[:4] in (b"PK\x03\x04", b"PK\x05\x06"), torch_archive.read),
    Refused(
        "a Git LFS pointer",
        lambda head: head.startswith(b"version https://git-lfs"),
        "fetch the file with git lfs pull",
    ),
    Refused("a web page", _is_markup, "the download failed; fetch the file again"),
    Format("safetensors", _is_safetensors, _read_safetensors),
    Format("torch-stream", lambda head: head[:1] == b"\x80" and head[1:2] in b"\1\2\3\4\5", torch_stream.read),
    Refused("a tar archive", lambda head: head[257:262] == b"ustar", "unpack it, or save it again with torch.save"),
    Format("safetensors", lambda head: head[8:9] == b"{", _read_safetensors),
)
"""Every format that is told by its first bytes; the first that matches is taken."""


def read_headers(checkpoint: Checkpoint) -> Headers:
    """Read the headers of all files of ``checkpoint``; what cannot be read becomes a notice."""
    tensors: list[TensorSpec] = []
    sources: list[SourceFile] = []
    notices: list[Notice] = []
    read: set[Path] = set()
    base = checkpoint.path if is_directory(checkpoint.path) else checkpoint.path.parent
    for path in checkpoint.files:
        try:
            with open_file(path) as file:
                format_name, (found, digest, faults) = read_file(file)
                sources.append(SourceFile(_relative(path, base), file.size, file.mtime_ns, format_name, digest))
        except CheckpointError as error:
            notices.append(error.notice())
            continue
        read.add(path)
        tensors += found
        notices += faults
    kept, twice = _unique(tensors)
    explained = {notice.tensor for notice in (*notices, *twice)}
    missing = [notice for notice in _misplaced(checkpoint, kept, read) if notice.tensor not in explained]
    return Headers(tuple(kept), tuple(sources), fold((*notices, *twice, *missing)))


def read_file(file: OpenedFile) -> tuple[str, Read]:
    """The format of one file and what its header says; raises CheckpointError."""
    head = file.read(0, HEAD_BYTES)
    for known in FORMATS:
        if not known.matches(head):
            continue
        if isinstance(known, Format):
            return known.name, known.read(file)
        message = f"is {known.name}, which is not read; {known.advice}"
        raise CheckpointError("E_FORMAT_REFUSED", message, path=file.path)
    if file.size <= LENGTH_BYTES:
        message = f"is {file.size} bytes long, too short for any format; fetch the file again"
        raise CheckpointError("E_FILE_TRUNCATED", message, path=file.path)
    message = (
        "is neither safetensors nor a PyTorch file by its first bytes; "
        "if it should be one it is damaged, fetch it again; if not, convert it to safetensors"
    )
    raise CheckpointError("E_FORMAT_UNKNOWN", message, path=file.path)


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def _unique(tensors: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[Notice]]:
    """Each name once: of a tensor that two files hold, neither can be trusted to be the one, so both are left out."""
    first: dict[str, TensorSpec] = {}
    twice: dict[str, TensorSpec] = {}
    for tensor in tensors:
        if first.setdefault(tensor.name, tensor) is not tensor:
            twice[tensor.name] = tensor
    kept = [tensor for tensor in tensors if tensor.name not in twice]
    notices = [
        Notice(
            "E_SHARD_TENSOR",
            f"stands in {first[name].path.name} too, so it is left out; fetch both files again",
            str(tensor.path),
            name,
        )
        for name, tensor in twice.items()
    ]
    return kept, notices


def _misplaced(checkpoint: Checkpoint, tensors: Sequence[TensorSpec], read: set[Path]) -> list[Notice]:
    """Tensors that the index places in a file that was read and does not hold them."""
    places = {tensor.name: tensor.path for tensor in tensors}
    reason = "the index names a tensor that this shard does not hold; fetch index and shards of the same revision"
    return [
        Notice("E_SHARD_TENSOR", reason, str(path), name)
        for name, path in (checkpoint.weight_map or {}).items()
        if path in read and places.get(name) != path
    ]
