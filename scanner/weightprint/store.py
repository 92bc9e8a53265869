"""A store: a directory of fingerprint files, one per checkpoint, and the only truth there is.

A checkpoint's file is named after it, with a digest of its absolute path, so that any number of processes can write to
one store without a lock. It holds no index that could go stale. Temporary files of killed processes are ignored.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from weightprint import __version__
from weightprint.atomic import write_atomic
from weightprint.data import Checkpoint, Fingerprint, SourceFile
from weightprint.errors import Notice, StoreError, UsageError
from weightprint.fingerprint_file import SUFFIX, read_all, read_fingerprint, to_bytes

Read = Callable[[Path, Sequence[Path]], tuple[list[Fingerprint], list[Notice]]]
DIGEST_LENGTH = 16


def default_store() -> Path:
    """Where fingerprints are kept when no --store is given."""
    from platformdirs import user_data_path

    return user_data_path("weightprint") / "store"


def default_references() -> Path:
    """The reference set that ``refs add`` fills and ``scan`` compares with."""
    from platformdirs import user_data_path

    return user_data_path("weightprint") / "references"


def file_name(name: str, path: str) -> str:
    """The file name of a checkpoint's fingerprint: its last parts for people, a digest of its path for uniqueness."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-80:] or "checkpoint"
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:DIGEST_LENGTH]
    return f"{words}-{digest}{SUFFIX}"


def find(store: Path, name: str, path: str) -> Path | None:
    """The file in ``store`` of the checkpoint at ``path``, whatever name it was scanned under; raises StoreError."""
    exact = store / file_name(name, path)
    try:
        if exact.is_file():
            return exact
        # The digest at the end of the name is that of the path.
        return next(iter(sorted(store.glob(f"*{exact.name[-DIGEST_LENGTH - len(SUFFIX) - 1 :]}"))), None)
    except OSError as error:
        raise StoreError("E_STORE", f"cannot be read ({error.strerror}); choose another store", path=store) from None


def load_fresh(store: Path, checkpoint: Checkpoint, sources: Sequence[SourceFile]) -> Fingerprint | None:
    """The stored fingerprint of ``checkpoint`` if it was made of exactly these files, else None.

    A damaged file counts as absent: it is written anew. So does one of a store that cannot be read. One that is not
    complete is made again by another version, which may understand more, and where a read failed, which may have been
    the disk's bad day.
    """
    try:
        path = find(store, checkpoint.name, str(checkpoint.path.absolute()))
        if path is None:
            return None
        fingerprint = read_fingerprint(path)
    except StoreError:
        return None
    fresh = fingerprint.sources == tuple(sources)
    outdated = fingerprint.status != "complete" and fingerprint.tool_version != __version__
    unlucky = any(notice.code == "E_READ" for notice in fingerprint.notices)
    return fingerprint if fresh and not outdated and not unlucky else None


def require_writable(store: Path) -> None:
    """Make the directory and try whether a file can be made in it; raises StoreError with the cause."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        message = f"no fingerprint can be written there ({error.strerror}); choose another store"
        raise StoreError("E_STORE", message, path=store) from None


def save(store: Path, fingerprint: Fingerprint) -> Path:
    """Write a fingerprint into ``store``, durably, over an older one of the same path; raises StoreError."""
    path = find(store, fingerprint.name, fingerprint.path) or store / file_name(fingerprint.name, fingerprint.path)
    write_fingerprint(path, fingerprint)
    return path


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write one fingerprint file, durably; raises StoreError with the cause."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_bytes(fingerprint))
    except OSError as error:
        message = f"cannot be written ({error.strerror}); choose another place or free it"
        raise StoreError("E_STORE", message, path=path) from None


def _read(store: Path, files: Sequence[Path]) -> tuple[list[Fingerprint], list[Notice]]:
    return read_all(files)


def load_all(store: Path, read: Read = _read) -> tuple[tuple[Fingerprint, ...], tuple[Notice, ...]]:
    """Every fingerprint below a directory, by file name, and a notice for every file that cannot be read. A directory
    that is not there holds none. ``read`` is how files of the directory are read: one by one, or through an index."""
    notices = []
    try:
        os.listdir(store)  # noqa: PTH208  rglob passes over what it may not read
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        reason = f"the directory cannot be read ({error.strerror}); check the disk and its permissions"
        notices.append(Notice("E_UNREADABLE", reason, str(store)))
    fingerprints, unread = read(store, sorted(store.rglob(f"*{SUFFIX}")))
    return tuple(fingerprints), (*notices, *unread)


def require_set(store: Path) -> None:
    """Raise UsageError E_NOT_FOUND if there is no such directory, StoreError if that cannot be found out."""
    try:
        there = stat.S_ISDIR(store.stat().st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            message = f"cannot be read ({error.strerror}); check the disk and the permissions"
            raise StoreError("E_UNREADABLE", message, path=store) from None
        there = False
    if not there:
        raise UsageError("E_NOT_FOUND", "there is no such reference set; refs add makes one", path=store)


def remove_named(store: Path, names: Sequence[str]) -> list[Path]:
    """Delete the fingerprints of these names, or of these files of the set; raises UsageError, and deletes none, if one
    is not there or is the name of several."""
    require_set(store)
    by_name: dict[str, list[Path]] = {}
    for path in sorted(store.rglob(f"*{SUFFIX}")):
        # By its file too, so that a damaged one can be removed, and one of several.
        by_name.setdefault(path.relative_to(store).as_posix(), []).append(path)
        with contextlib.suppress(StoreError):
            by_name.setdefault(read_fingerprint(path).name, []).append(path)
    for name in names:
        found = by_name.get(name, [])
        if not found:
            raise UsageError("E_NOT_FOUND", f"no reference is named {name!r}; refs list shows the names", path=store)
        if len(found) > 1:
            files = ", ".join(path.relative_to(store).as_posix() for path in found)
            message = f"{len(found)} references are named {name!r}; name one by its file: {files}"
            raise UsageError("E_USAGE", message, path=store)
    removed = list(dict.fromkeys(path for name in names for path in by_name[name]))
    for path in removed:
        try:
            path.unlink()
        except OSError as error:
            raise StoreError("E_STORE", f"cannot be removed ({error.strerror})", path=path) from None
    return removed
