"""What lies below the paths of a command line: checkpoints to read, and fingerprints that were taken already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightprint import store as stores
from weightprint.data import Checkpoint, Fingerprint
from weightprint.discover import discover
from weightprint.errors import Notice, StoreError, UsageError
from weightprint.fingerprint_file import SUFFIX, is_fingerprint, read_all
from weightprint.formats.opened import is_directory
from weightprint.index import fingerprints_below


@dataclass(frozen=True)
class Sources:
    """What lies below some paths: checkpoints to read, and fingerprints already taken."""

    checkpoints: tuple[Checkpoint, ...]
    fingerprints: tuple[Fingerprint, ...]
    notices: tuple[Notice, ...]


def gather_scanned(paths: Sequence[Path], include: Sequence[str], exclude: Sequence[str], store: Path) -> Sources:
    """What is to be scanned; raises UsageError E_NO_CHECKPOINT if there is nothing, or if the globs leave nothing."""
    found = gather(paths, include, exclude, store)
    if found.checkpoints or found.fingerprints:
        return found
    _require_readable(found)
    if include or exclude:
        left_out = len(gather(paths, store=store).checkpoints)
        if left_out:
            message = f"{left_out} checkpoints lie below it, and --include and --exclude leave none of them"
            raise UsageError("E_NO_CHECKPOINT", message, path=", ".join(str(path) for path in paths))
    raise nothing_found(paths)


def gather_references(paths: Sequence[Path] | None) -> Sources:
    """The references below ``paths``; None means the default reference set, if there is one."""
    if paths is not None:
        found = gather(paths, indexed=True)
        if not found.checkpoints and not found.fingerprints and paths:
            _require_readable(found)
            raise nothing_found(paths)
        return found
    default = stores.default_references()
    try:
        default.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Sources((), (), ())
    except OSError:
        pass  # it may be there: load_all says why it cannot be read
    fingerprints, notices = stores.load_all(default, fingerprints_below)
    return Sources((), fingerprints, notices)


def gather(
    paths: Sequence[Path],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    store: Path | None = None,
    indexed: bool = False,
) -> Sources:
    """Everything to compare below ``paths``: checkpoints, and fingerprint files except those of ``store`` itself, which
    come from the index of their directory if they may."""
    files = [path for path in paths if is_fingerprint(path)]
    others = [path for path in paths if path not in files]
    fingerprints, notices = read_all(files)
    own_store = None if store is None else Path(os.path.realpath(store))
    for path in others:
        if is_directory(path):
            inside = own_store is not None and own_store != Path(os.path.realpath(path))
            below = [
                file
                for file in sorted(path.rglob(f"*{SUFFIX}"))
                if not (inside and own_store in Path(os.path.realpath(file)).parents)
            ]
            found, unread = fingerprints_below(path, below) if indexed else read_all(below)
            fingerprints += found
            notices += unread
    checkpoints = discover(others, include, exclude) if others else ()
    return Sources(checkpoints, tuple(fingerprints), tuple(notices))


def nothing_found(paths: Sequence[Path]) -> UsageError:
    """The error of a scan that has nothing to scan."""
    message = (
        "no checkpoint lies below it; a checkpoint is a directory with weight files (.safetensors, .bin, .pt, .pth, "
        ".ckpt) or such a file itself"
    )
    return UsageError("E_NO_CHECKPOINT", message, path=", ".join(str(path) for path in paths))


def _require_readable(found: Sources) -> None:
    """Where nothing was found, a fingerprint that could not be read is the reason; raises StoreError."""
    for notice in found.notices:
        raise StoreError(notice.code, notice.reason, path=notice.path)


def one_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``; raises UsageError if there is none or more than one."""
    found = discover([path])
    if not found:
        raise nothing_found([path])
    if len(found) > 1:
        names = ", ".join(checkpoint.name for checkpoint in found[:5]) + (", ..." if len(found) > 5 else "")
        raise UsageError("E_USAGE", f"holds {len(found)} checkpoints ({names}); name one of them", path=path)
    return found[0]
