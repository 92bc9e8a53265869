"""Bytes of files: mapped where the file system is local, read where it is not, and never more than one slot a thread.

A mapping costs no copy, and is the fastest way to what the page cache holds. A network file system gets ``preadv``: a
page that does not come would hold a mapping for minutes. Either way the size is checked before, and after it is known
whether every byte was there. What was not in the page cache before is dropped from it, so that a night's scan does not
drive out what others work with; what was there stays, where the system tells.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from weightprint.engine.guard import Guard, installed_guard
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot
from weightprint_kernels.layout import UINT8

READ_BYTES = 2**20  # of one preadv: what network file systems transfer at once
SAMPLES = 8
NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.juicefs"),
        *("fuse.mount-s3", "fuse.cvmfs2", "fuse.ceph"),
    )
)
"""File system types whose pages come over a network."""


class OpenFiles:
    """The files of one plan: each is opened at its first slot and closed after its last."""

    def __init__(self, plan: Plan) -> None:
        self._left = Counter(plan.file.tolist())
        self._number = {path: number for number, path in enumerate(plan.paths)}
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def using(self, path: Path) -> Iterator[int]:
        """The descriptor of ``path`` for one slot; raises CheckpointError if it cannot be opened."""
        try:
            with self._lock:
                known = self._descriptors.get(path)
            yield self._opened(path) if known is None else known
        finally:
            self.done(path)

    def _opened(self, path: Path) -> int:
        """Open ``path``, which may take its time, without holding up those who read other files."""
        own = open_regular(path)
        with self._lock:
            descriptor = self._descriptors.setdefault(path, own)
        if descriptor != own:
            os.close(own)
        return descriptor

    def done(self, path: Path) -> None:
        """One slot less will be read of ``path``."""
        with self._lock:
            self._left[self._number[path]] -= 1
            if self._left[self._number[path]] == 0 and path in self._descriptors:
                os.close(self._descriptors.pop(path))

    def close(self) -> None:
        """Close what is still open, where slots were given up."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, which the caller closes; a pipe or a device is refused without blocking."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError("E_READ", f"cannot be opened ({error.strerror})", path=path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("E_NOT_REGULAR", "is not a regular file", path=path)
    return descriptor


@contextlib.contextmanager
def bytes_of(slot: Slot, descriptor: int) -> Iterator[UINT8]:
    """The bytes of ``slot``, uint8 [length], as long as the context lasts; raises CheckpointError, also at its end."""
    _require_size(slot, descriptor)
    guard = installed_guard()
    resident = is_resident(descriptor, slot.offset, slot.length)
    if not resident:
        _advise(slot, descriptor, "POSIX_FADV_WILLNEED")
    if guard is None or not is_local(descriptor):
        yield read(slot, descriptor, np.empty(slot.length, np.uint8))
    else:
        with _mapped(slot, descriptor, guard) as data:
            yield data
            del data  # or the mapping could not be closed, and its pages not dropped
    if not resident:
        _advise(slot, descriptor, "POSIX_FADV_DONTNEED")


def _advise(slot: Slot, descriptor: int, advice: str) -> None:
    """Tell the system what will become of the slot's pages, where it can be told."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, slot.offset, slot.length, getattr(os, advice))


def read_slot(slot: Slot, descriptor: int, buffer: UINT8) -> None:
    """Read ``slot`` into ``buffer``, uint8 [length]; raises CheckpointError."""
    _require_size(slot, descriptor)
    resident = is_resident(descriptor, slot.offset, slot.length)
    read(slot, descriptor, buffer)
    if not resident:
        _advise(slot, descriptor, "POSIX_FADV_DONTNEED")


@contextlib.contextmanager
def _mapped(slot: Slot, descriptor: int, guard: Guard) -> Iterator[UINT8]:
    before = slot.offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(
            descriptor,
            before + slot.length,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ,
            offset=slot.offset - before,
        )
    except ValueError:  # the size changed since it was checked
        raise _truncated(slot, descriptor) from None
    except OSError as error:
        raise CheckpointError("E_READ", f"cannot be mapped ({error.strerror})", path=slot.path) from None
    data = np.frombuffer(mapping, np.uint8)
    pages = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
    try:
        with guard.watch(data.ctypes.data, pages) as page_was_missing:
            yield data[before:]
            if page_was_missing():
                _require_size(slot, descriptor)
                message = f"bytes {slot.offset} to {slot.offset + slot.length} could not be read; check the disk"
                raise CheckpointError("E_READ", f"{message} and scan again", path=slot.path)
    finally:
        del data
        with contextlib.suppress(BufferError):  # an exception that is on its way holds the array: it goes with it
            mapping.close()


def read(slot: Slot, descriptor: int, buffer: UINT8) -> UINT8:
    """Read ``slot`` into the front of ``buffer``; raises CheckpointError."""
    data = buffer[: slot.length]
    view = data.data
    done = 0
    while done < slot.length:
        try:
            count = os.preadv(descriptor, [view[done : done + READ_BYTES]], slot.offset + done)
        except OSError as error:
            message = f"reading at byte {slot.offset + done} failed ({error.strerror}); check the disk and scan again"
            raise CheckpointError("E_READ", message, path=slot.path) from None
        if count == 0:
            raise _truncated(slot, descriptor)
        done += count
    return data


def _require_size(slot: Slot, descriptor: int) -> None:
    if os.fstat(descriptor).st_size < slot.offset + slot.length:
        raise _truncated(slot, descriptor)


def _truncated(slot: Slot, descriptor: int) -> CheckpointError:
    size = os.fstat(descriptor).st_size
    message = f"ends at byte {size}, and its header describes bytes up to {slot.offset + slot.length} at least"
    return CheckpointError("E_FILE_TRUNCATED", f"{message}; fetch the file again", path=slot.path)


def is_resident(descriptor: int, offset: int, length: int) -> bool:
    """Whether samples of a range are in the page cache; False where the system does not tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    byte = bytearray(1)
    for sample in range(SAMPLES):
        try:
            os.preadv(descriptor, [byte], offset + (length - 1) * sample // (SAMPLES - 1), os.RWF_NOWAIT)
        except OSError:
            return False
    return True


def is_local(descriptor: int) -> bool:
    """Whether a file lies on a file system of this machine."""
    return _file_systems().get(os.fstat(descriptor).st_dev, "") not in NETWORK


@functools.cache
def _file_systems() -> dict[int, str]:
    """File system types by device number, as they were mounted at the first question."""
    types = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            major, minor = mount.split()[2].split(":")
            types[os.makedev(int(major), int(minor))] = kind.split()[0]
    return types
