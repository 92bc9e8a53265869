"""Every error that a file or a user can cause: one base class, one table of stable codes.

A line for people is ``path: tensor: message [CODE]``; programs match on the code. The table is
the list that docs/errors.md prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CODES: dict[str, str] = {
    # discovery
    "E_NOT_FOUND": "The path does not exist.",
    "E_NO_CHECKPOINT": "No checkpoint lies below the path.",
    "E_NOT_REGULAR": "A weight file or fingerprint is a pipe, socket, device or directory instead of a regular file.",
    "E_DANGLING_LINK": "A weight file is a symbolic link whose target is missing, or a loop of links.",
    "E_UNREADABLE": "The file or directory cannot be read (permission or input/output error).",
    "E_EMPTY_FILE": "The file holds no byte.",
    # config
    "E_CONFIG_INVALID": "config.json is empty, not JSON or not an object; it is left out and shapes decide.",
    # shards
    "E_INDEX_INVALID": "The shard index is not JSON, or holds no weight_map of tensor names to file names.",
    "E_INDEX_ESCAPE": "The shard index names a file outside the checkpoint's directory.",
    "E_SHARD_MISSING": "A shard that the index or the file names call for is not there.",
    "E_SHARD_TENSOR": "The index names a tensor that its shard does not hold, or two shards hold the same tensor.",
    # formats
    "E_FORMAT_UNKNOWN": "The file's content is no format that weightprint reads.",
    "E_FORMAT_REFUSED": "The format is known and not read; the message says what to convert it to.",
    "E_HEADER_INVALID": "The header does not parse, or describes bytes that cannot be.",
    "E_HEADER_LARGE": "The header is larger than the file or than the limit.",
    "E_FILE_TRUNCATED": "The file ends before the bytes that its header describes.",
    "E_PICKLE_INVALID": "The pickle stream is broken, or is too large.",
    "E_PICKLE_UNSAFE": "The pickle calls for an object that weights_only loading does not allow; nothing was run.",
    "E_NOT_STATE_DICT": "The pickle holds no mapping of names to tensors.",
    "E_VIEW_INVALID": "A tensor is a view larger than its storage, or not contiguous.",
    "E_ZIP_COMPRESSED": "A tensor's bytes are compressed in the zip, so they cannot be read in place.",
    # roles
    "E_NO_ATTENTION": "No attention module was recognised by its names and shapes.",
    "E_NOT_UNDERSTOOD": "Attention or feed-forward tensors whose names, shapes or siblings fit no known layout.",
    "E_LAYER_HOLE": "A stack of layers has a hole: some layer or role is missing that its neighbours have.",
    "E_DTYPE": "The tensor's encoding is not one that the kernels decode.",
    "E_ZERO_SIZE": "The tensor holds no element.",
    # reading
    "E_CHANGED": "The file changed while it was being read; scan again when it is complete.",
    "E_READ": "The operating system could not read the bytes.",
    "E_NON_FINITE": "NaN or infinite weights; they are counted, and units that hold one are left out of the test.",
    "E_DEVICE": "The compute device is missing or failed.",
    # fingerprints and stores
    "E_FINGERPRINT_CORRUPT": "The fingerprint file is damaged: its digest or its canonical form does not match.",
    "E_FINGERPRINT_VERSION": "The fingerprint file was written by a newer version.",
    "E_STORE": "The store cannot be read or written.",
    "E_OUTPUT": "The output file cannot be written, or its suffix names no known format.",
    # usage
    "E_USAGE": "The command line asks for something that does not fit together.",
    "E_WORLD": "The process was launched as one of several, which would each do all the work.",
    "E_INTERNAL": "A bug in weightprint; the checkpoint is left out and the scan goes on.",
}


class WeightprintError(Exception):
    """Base of all errors that weightprint raises on purpose.

    ``code`` is a key of :data:`CODES`; ``path`` and ``tensor`` say where; ``message`` says what was found and what to
    do.
    """

    def __init__(self, code: str, message: str, *, path: str | Path | None = None, tensor: str | None = None) -> None:
        assert code in CODES, code
        self.code = code
        self.message = message
        self.path = None if path is None else str(path)
        self.tensor = tensor
        super().__init__(self.line())

    def line(self) -> str:
        """The error as one line: where, what, code. Names are escaped by whoever prints it."""
        where = ": ".join(part for part in (self.path, self.tensor) if part)
        return f"{where}: {self.message} [{self.code}]" if where else f"{self.message} [{self.code}]"

    def notice(self) -> Notice:
        """The same, as a record that can be kept and stored."""
        return Notice(self.code, self.message, self.path, self.tensor)


class CheckpointError(WeightprintError):
    """A checkpoint, one of its files or one of its tensors cannot be read or understood."""


class StoreError(WeightprintError):
    """A fingerprint file or a store cannot be read or written."""


class UsageError(WeightprintError):
    """The caller asked for something that does not fit together, or that does not exist."""


class OutputError(WeightprintError):
    """A result cannot be written."""


class DeviceError(WeightprintError):
    """A compute device is missing or failed."""


@dataclass(frozen=True)
class Notice:
    """Something that went wrong without stopping the rest: code, reason, and where."""

    code: str
    reason: str
    path: str | None = None
    tensor: str | None = None

    def line(self) -> str:
        """The notice as one line: where, what, code."""
        where = ": ".join(part for part in (self.path, self.tensor) if part)
        return f"{where}: {self.reason} [{self.code}]" if where else f"{self.reason} [{self.code}]"
