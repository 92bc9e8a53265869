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
from weightprint.formats.opened import OpenedFile, open_weight_file

Read = tuple[tuple[TensorSpec, ...], str, tuple[Notice, ...]]


@dataclass(frozen=True)
class Format:
    """A format that is read: how its first bytes look, and what reads its header."""

    name: str
    matches: Callable[[bytes], bool]
    read: Callable[[OpenedFile], Read]


def _read_safetensors(file: OpenedFile) -> Read:
    tensors, digest = safetensors.read(file)
    return tensors, digest, ()


REFUSED: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    ("GGUF", lambda head: head[:4] == b"GGUF", "read the float checkpoint that it was made from"),
    ("HDF5 (Keras)", lambda head: head[:8] == b"\x89HDF\r\n\x1a\n", "convert it to safetensors"),
    ("a Git LFS pointer", lambda head: head.startswith(b"version https://git-lfs"), "fetch the file with git lfs pull"),
    ("a web page", lambda head: head.lstrip()[:1] == b"<", "the download failed; fetch the file again"),
    ("a tar archive", lambda head: head[257:262] == b"ustar", "unpack it, or save it again with torch.save"),
    ("numpy", lambda head: head[:6] == b"\x93NUMPY", "convert it to safetensors"),
)
"""Formats that are known and not read: name, first bytes, what to do."""

FORMATS: tuple[Format, ...] = (
    Format("torch-zip", lambda head: head[:2] == b"PK", torch_archive.read),
    Format("torch-stream", lambda head: head[:1] == b"\x80" and head[8:9] != b"{", torch_stream.read),
    Format("safetensors", lambda head: head[8:9] == b"{", _read_safetensors),
)


def read_headers(checkpoint: Checkpoint) -> Headers:
    """Read the headers of all files of ``checkpoint``; what cannot be read becomes a notice."""
    tensors: list[TensorSpec] = []
    sources: list[SourceFile] = []
    notices: list[Notice] = []
    base = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for path in checkpoint.files:
        try:
            with open_weight_file(path) as file:
                format_name, (found, digest, faults) = read_file(file)
                sources.append(SourceFile(_relative(path, base), file.size, file.mtime_ns, format_name, digest))
                tensors += found
                notices += faults
        except CheckpointError as error:
            notices.append(error.notice())
    kept, twice = _unique(tensors)
    notices += twice
    notices += _misplaced(checkpoint, kept, [notice.path for notice in notices])
    return Headers(tuple(kept), tuple(sources), tuple(notices))


def read_file(file: OpenedFile) -> tuple[str, Read]:
    """The format of one file and what its header says; raises CheckpointError."""
    head = file.read(0, 512)
    for name, matches, advice in REFUSED:
        if matches(head):
            raise CheckpointError("E_FORMAT_REFUSED", f"is {name}, which is not read; {advice}", path=file.path)
    for known in FORMATS:
        if known.matches(head):
            return known.name, known.read(file)
    message = "is neither safetensors nor a PyTorch file, whatever its name says; convert it to safetensors"
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
        Notice("E_SHARD_TENSOR", f"stands in {first[name].path.name} too; it is left out", str(tensor.path), name)
        for name, tensor in twice.items()
    ]
    return kept, notices


def _misplaced(checkpoint: Checkpoint, tensors: Sequence[TensorSpec], faulty: Sequence[str | None]) -> list[Notice]:
    """Tensors that the index places in a file that was read and does not hold them."""
    if checkpoint.weight_map is None:
        return []
    places = {tensor.name: tensor.path for tensor in tensors}
    return [
        Notice("E_SHARD_TENSOR", "the index names a tensor that this shard does not hold", str(path), name)
        for name, path in checkpoint.weight_map.items()
        if places.get(name) != path and str(path) not in faulty and path in checkpoint.files
    ]
