"""Discovery: every checkpoint below some paths, and every weight-like file accounted for. No weight file is opened.

A directory with weight files is one checkpoint; a lone weight file is one. Several weight files in one directory that
neither an index, nor shard numbers, nor a standard name hold together are checkpoints of their own. safetensors and
PyTorch files of the same model count once, safetensors first. Symbolic links are followed (hub caches are made of
them), real directories first; a directory that was seen already, under whatever name, is not entered again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from weightprint.data import Checkpoint
from weightprint.declared import read_declared
from weightprint.errors import CheckpointError, Notice, UsageError
from weightprint.formats.notices import fold
from weightprint.formats.opened import is_directory
from weightprint.weight_files import WeightSet, lone_file, read_json_object, refusal, sort_files, why_unusable

SKIPPED_DIRECTORIES = frozenset({".git", "lost+found"})
MAX_CONFIG = 16 * 2**20

Aside = tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class _Found:
    """A checkpoint and the scanned path below which it was found."""

    root: Path
    checkpoint: Checkpoint


@dataclass(frozen=True)
class _Directory:
    """One directory and its files, or why it could not be listed."""

    path: Path
    files: tuple[Path, ...]
    notice: Notice | None = None


def discover(paths: Sequence[Path], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[Checkpoint, ...]:
    """Every checkpoint below ``paths``, sorted by name; raises UsageError E_NOT_FOUND for a path that is not there.

    Names are POSIX paths relative to the scanned path; ``include`` and ``exclude`` are globs on them.
    """
    for root in paths:
        _require_there(root)
    paths = [_without_dots(root) for root in paths]
    seen: set[tuple[int, int]] = set()
    # Directories first, so that a file named beside its own directory is not a second checkpoint.
    found = [found for root in paths if is_directory(root) for found in _below(root, seen)]
    covered = {_absolute(file) for entry in found for file in entry.checkpoint.files}
    for root in paths:
        if not is_directory(root) and _absolute(root) not in covered:
            covered.add(_absolute(root))
            found.append(_Found(root, _lone(root)))
    chosen = [checkpoint for checkpoint in _with_unique_names(found) if _is_wanted(checkpoint.name, include, exclude)]
    return tuple(sorted(chosen, key=lambda checkpoint: checkpoint.name))


def _require_there(root: Path) -> None:
    """What cannot be looked at may be there, and becomes a checkpoint that could not be read."""
    try:
        root.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError("E_NOT_FOUND", "there is no such file or directory", path=root) from None
    except OSError:
        return


def _is_wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return (not include or matches(include)) and not matches(exclude)


def _with_unique_names(found: Sequence[_Found]) -> list[Checkpoint]:
    """Names that several checkpoints share get more and more of the scanned path in front."""
    checkpoints = [entry.checkpoint for entry in found]
    longest = max((len(_parts(entry.root)) for entry in found), default=0)
    for depth in range(1, longest + 1):
        uses = Counter(checkpoint.name for checkpoint in checkpoints)
        if len(uses) == len(checkpoints):
            break
        for number, entry in enumerate(found):
            if uses[checkpoints[number].name] > 1:
                original = entry.checkpoint
                above = _parts(entry.root)[: -1 if original.path == entry.root else None]
                name = PurePosixPath(*above[-depth:], original.name).as_posix()
                checkpoints[number] = replace(original, name=name)
    return checkpoints


def _parts(root: Path) -> tuple[str, ...]:
    return tuple(part for part in _absolute(root).parts if part != os.sep)


def _without_dots(root: Path) -> Path:
    """The path without "..", so that one checkpoint has one path; what a link before it leads to decides."""
    if ".." not in root.parts:
        return root
    if root.name == "..":
        return Path(os.path.realpath(root))
    return Path(os.path.realpath(root.parent), root.name)


def _own_name(root: Path) -> str:
    return _absolute(root).name or "/"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow links


def _below(root: Path, seen: set[tuple[int, int]]) -> Iterator[_Found]:
    """Checkpoints below a directory. Files of refused formats below a checkpoint that can be read (its ONNX export,
    say) are set aside with it instead of being failures of their own."""
    found: list[Checkpoint] = []
    readable: dict[Path, int] = {}
    for directory in _directories(root, seen):
        for checkpoint in _in_directory(root, directory):
            owner = next((readable[above] for above in directory.path.parents if above in readable), None)
            if checkpoint.files:
                readable.setdefault(directory.path, len(found))
            elif owner is not None and {notice.code for notice in checkpoint.notices} == {"E_FORMAT_REFUSED"}:
                aside = found[owner].set_aside + checkpoint.set_aside
                found[owner] = replace(found[owner], set_aside=aside)
                continue
            found.append(checkpoint)
    return (_Found(root, checkpoint) for checkpoint in found)


def _directories(root: Path, seen: set[tuple[int, int]]) -> Iterator[_Directory]:
    """Every directory below ``root`` that is not in ``seen``, by device and inode, parents first, in order of names;
    those behind links after all others, and never one that holds ``root`` itself."""
    real, linked = [root], list[Path]()
    resolved_root = Path(os.path.realpath(root))
    while real or linked:
        directory = real.pop() if real else linked.pop(0)
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the directory cannot be read ({error.strerror}); check the disk and its permissions"
            yield _Directory(directory, (), Notice("E_UNREADABLE", reason, str(directory)))
            continue
        files: list[Path] = []
        below: list[Path] = []
        for entry in entries:
            path = directory / entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED_DIRECTORIES:
                    below.append(path)
            elif not entry.is_symlink() or not is_directory(path):
                files.append(path)
            elif not resolved_root.is_relative_to(os.path.realpath(path)):
                linked.append(path)
        real += reversed(below)
        yield _Directory(directory, tuple(files))


def _lone(path: Path) -> Checkpoint:
    """The checkpoint of a file that was named by itself."""
    reason = refusal(path)
    if reason is not None:
        return _refused(_own_name(path), path, ((path, reason),))
    return _checkpoint(_own_name(path), path, lone_file(path), ())


def _in_directory(root: Path, directory: _Directory) -> Iterator[Checkpoint]:
    relative = directory.path.relative_to(root).as_posix()
    name = _own_name(root) if relative == "." else relative
    if directory.notice is not None:
        yield Checkpoint(name, directory.path, (), notices=(directory.notice,))
        return
    files = sort_files(directory.path, directory.files)
    if not files.sets:
        if files.refused:
            yield _refused(name, directory.path, files.refused, files.side)
        return
    main = next((found for found in files.sets if found.is_standard), files.sets[0])
    stems = {found.stem for found in files.sets}
    if main.is_standard or len(stems) == 1:
        aside = (*files.side, *files.refused, *_not_read(files.sets, main))
        yield _checkpoint(name, directory.path, main, aside)
        return
    side, refused = files.side, files.refused
    for stem in sorted(stems):
        same = [found for found in files.sets if found.stem == stem]
        first = same[0].files[0] if same[0].files else directory.path / f"{stem}{same[0].suffix}.index.json"
        exports = tuple(entry for entry in refused if entry[0].stem == stem)
        refused = tuple(entry for entry in refused if entry not in exports)
        aside = (*side, *exports, *_not_read(same, same[0]))
        yield _checkpoint(_within(relative, first), first, same[0], aside)
        side = ()
    if refused:
        yield _refused(_within(relative, refused[0][0]), refused[0][0], refused)


def _within(relative: str, file: Path) -> str:
    return file.name if relative == "." else f"{relative}/{file.name}"


def _not_read(sets: Iterable[WeightSet], main: WeightSet) -> Aside:
    """The files of the other sets, each once: two indices may name the same file."""
    what = main.files[0].name if main.files else main.stem
    others = dict.fromkeys(path for found in sets if found is not main for path in found.files)
    return tuple((path, f"{what} is read instead") for path in others if path not in main.files)


def _refused(name: str, path: Path, refused: Aside, side: Aside = ()) -> Checkpoint:
    notices = tuple(Notice("E_FORMAT_REFUSED", reason, str(file)) for file, reason in refused)
    return Checkpoint(name, path, (), set_aside=(*side, *refused), notices=fold(notices))


def _checkpoint(name: str, path: Path, weights: WeightSet, set_aside: Aside) -> Checkpoint:
    """Put a checkpoint together: usable files, config, and a notice for each file that cannot be opened."""
    unusable = {file: notice for file in weights.files if (notice := why_unusable(file)) is not None}
    files = tuple(file for file in weights.files if file not in unusable)
    notices = [*weights.missing, *unusable.values()]
    config: dict[str, Any] = {}
    directory = path if is_directory(path) else path.parent
    config_path = directory / "config.json"
    if os.path.lexists(config_path):
        try:
            config = read_json_object(config_path, "E_CONFIG_INVALID", MAX_CONFIG)
        except CheckpointError as error:
            notices.append(error.notice())
    weight_map = weights.weight_map
    if weight_map is not None:
        weight_map = {tensor: file for tensor, file in weight_map.items() if file not in unusable}
    declared = read_declared(directory, config, name)
    return Checkpoint(name, path, files, weight_map, config, set_aside, fold(notices), declared)
