"""One file of a checkpoint, opened without surprises: stat first, regular files only, bounded reads.

A pipe with the name of a weight file would block an open, so nothing is opened before stat says that it is a regular
file; the descriptor is checked once more after. Links are followed: hub caches are made of them.
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

SECTOR = 512


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
def open_file(path: Path) -> Iterator[OpenedFile]:
    """Open ``path``; raises CheckpointError with the reason why it cannot be."""
    require_readable(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from None
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        _require_present(path, status, descriptor)
        yield OpenedFile(path, descriptor, status.st_size, status.st_mtime_ns)
    finally:
        os.close(descriptor)


def require_readable(path: Path) -> None:
    """Raise CheckpointError if ``path`` is no regular file with bytes that this process may read; opens nothing."""
    try:
        status = path.stat()
    except OSError as error:
        raise _cannot_open(path, error) from None
    _require_regular(path, status)
    if not os.access(path, os.R_OK):
        raise _cannot_open(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def is_directory(path: Path) -> bool:
    """Whether ``path`` leads to a directory; no if that cannot be found out."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether ``path`` leads to a regular file; no if that cannot be found out."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_text(name: str) -> bool:
    """Whether ``name`` can be written as UTF-8; JSON and pickles can smuggle halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("E_NOT_REGULAR", "is not a regular file; it was not opened", path=path)
    if status.st_size == 0:
        raise CheckpointError("E_EMPTY_FILE", "holds no byte; fetch the file again", path=path)


def _require_present(path: Path, status: os.stat_result, descriptor: int) -> None:
    """Downloads that set the size aside and stop leave a file of holes, which would read as zeros.

    Allocated blocks alone do not tell (compression, file systems that report none), so the file system must also
    say where the hole is.
    """
    if not hasattr(os, "SEEK_HOLE") or status.st_blocks * SECTOR >= status.st_size // 2:
        return
    try:
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError:
        return
    if hole < status.st_size:
        message = (
            f"is {status.st_size} bytes long and only {status.st_blocks * SECTOR} of them are on disk; "
            "the download did not finish, fetch the file again"
        )
        raise CheckpointError("E_FILE_TRUNCATED", message, path=path)


def _cannot_open(path: Path, error: OSError) -> CheckpointError:
    # Path.is_symlink raises where a directory on the way cannot be searched.
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) and os.path.islink(path):  # noqa: PTH114
        message = f"is a link that leads nowhere ({error.strerror}); fetch its target again"
        return CheckpointError("E_DANGLING_LINK", message, path=path)
    message = f"cannot be opened ({error.strerror}); check the disk and the permissions of the file and its directories"
    return CheckpointError("E_UNREADABLE", message, path=path)
