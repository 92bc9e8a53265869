"""One weight file, opened without surprises: stat first, regular files only, bounded reads.

A pipe with the name of a weight file would block an open, so nothing is opened before stat says that it is a regular
file; the descriptor is checked once more after.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightprint.errors import CheckpointError


@dataclass(frozen=True)
class OpenedFile:
    """A regular file open for reading. Reads never go past ``size``, the file's size when it was opened."""

    path: Path
    descriptor: int
    size: int
    mtime_ns: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
        parts = []
        length = max(0, min(length, self.size - offset))
        while length:
            try:
                part = os.pread(self.descriptor, length, offset)
            except OSError as error:
                raise CheckpointError("E_READ", f"cannot be read ({error.strerror})", path=self.path) from None
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def open_weight_file(path: Path) -> Iterator[OpenedFile]:
    """Open ``path``; raises CheckpointError with the reason why it cannot be."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError("E_NOT_REGULAR", "is not a regular file; it was not opened", path=path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("E_NOT_REGULAR", "is not a regular file", path=path)
        if status.st_size == 0:
            raise CheckpointError("E_EMPTY_FILE", "holds no byte; fetch the file again", path=path)
        yield OpenedFile(path, descriptor, status.st_size, status.st_mtime_ns)
    finally:
        os.close(descriptor)


def _cannot_open(path: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
        return CheckpointError("E_DANGLING_LINK", "is a link to nothing; fetch its target again", path=path)
    return CheckpointError("E_UNREADABLE", f"cannot be opened ({error.strerror})", path=path)
