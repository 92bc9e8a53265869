"""Discovery: every checkpoint below some paths, and every weight-like file accounted for. No file is opened but small
JSON ones, and those only after stat has said that they are regular.

A directory with weight files is one checkpoint; a lone weight file is one. Several weight files in one directory that
neither an index, nor shard numbers, nor a standard name hold together are checkpoints of their own. safetensors and
PyTorch files of the same model count once, safetensors first. Symbolic links are followed (hub caches are made of
them); a directory that was seen already, under whatever name, is not entered again.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from weightprint.data import Checkpoint
from weightprint.errors import CheckpointError, Notice, UsageError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of candidates; what a file is, its content decides."""

REFUSED_SUFFIXES: dict[str, str] = {
    ".gguf": "GGUF is not read; scan the float checkpoint that it was made from",
    ".h5": "Keras files are not read; convert the model to safetensors",
    ".keras": "Keras files are not read; convert the model to safetensors",
    ".msgpack": "Flax files are not read; convert the model to safetensors",
    ".onnx": "ONNX files are not read; scan the checkpoint that it was exported from",
    ".distcp": "distributed checkpoints are not read; convert with torch.distributed.checkpoint.format_utils",
    ".tflite": "TFLite files are not read; scan the checkpoint that it was made from",
    ".nemo": "NeMo archives are not read; unpack it and scan the weights inside",
}

SIDE_FILES = re.compile(
    r"(training_args|optimizer|optim|scheduler|scaler|rng_state.*|random_states.*|trainer_state|"
    r"tokenizer.*|sentencepiece.*|vocab.*|.*[-_.]optim(izer)?[-_.].*|zero_pp_rank.*|mp_rank.*_optim_states)\.(bin|pt|pth|ckpt)"
)
"""Files beside weights that hold none: states of the trainer, tokenizers."""

STANDARD = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model", "open_clip_model", "consolidated")
SHARD = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d{2,6})[-_]of[-_](?P<count>\d{2,6})(?P<suffix>\.[a-z]+)")
INDEX_SUFFIX = ".index.json"
MAX_JSON = 64 * 2**20
MAX_DIRECTORIES = 1_000_000


@dataclass(frozen=True)
class _Group:
    """Weight files that are one set of tensors: a single file, or shards with or without an index."""

    stem: str
    files: tuple[Path, ...]
    weight_map: dict[str, Path] | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def preference(self) -> tuple[bool, bool, bool, str]:
        """What is read first where several groups hold the same model: safetensors, then the standard names."""
        suffixes = {path.suffix for path in self.files}
        return (suffixes != {".safetensors"}, self.stem not in STANDARD, self.weight_map is None, self.stem)


def discover(paths: Sequence[Path], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[Checkpoint, ...]:
    """Every checkpoint below ``paths``, sorted by name; raises UsageError E_NOT_FOUND for a path that is not there.

    Names are POSIX paths relative to the scanned path; ``include`` and ``exclude`` are globs on them.
    """
    found: dict[Path, tuple[Path, Checkpoint]] = {}
    for root in paths:
        if not os.path.lexists(root):
            raise UsageError("E_NOT_FOUND", "there is no such file or directory", path=root)
        for checkpoint in _below(root):
            found.setdefault(checkpoint.path.absolute(), (root, checkpoint))
    named = _with_unique_names(list(found.values()))
    chosen = [checkpoint for checkpoint in named if _is_wanted(checkpoint.name, include, exclude)]
    return tuple(sorted(chosen, key=lambda checkpoint: checkpoint.name))


def _is_wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return (not include or matches(include)) and not matches(exclude)


def _with_unique_names(found: Sequence[tuple[Path, Checkpoint]]) -> list[Checkpoint]:
    """Names that several scanned paths share get more and more of the path in front."""
    checkpoints = [checkpoint for _, checkpoint in found]
    for depth in range(1, 64):
        names = [checkpoint.name for checkpoint in checkpoints]
        shared = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if not shared:
            break
        for number, (root, original) in enumerate(found):
            if checkpoints[number].name in shared:
                above = root.absolute().parts if original.path != root else root.absolute().parts[:-1]
                prefix = PurePosixPath(*[part for part in above[-depth:] if part != os.sep])
                checkpoints[number] = replace(original, name=(prefix / original.name).as_posix())
    return checkpoints


def _below(root: Path) -> Iterator[Checkpoint]:
    if not root.is_dir():
        name = root.name or root.absolute().name
        yield _checkpoint(name, root, (_Group(_stem(root), (root,)),), ())
        return
    for directory, entries, notices in _directories(root):
        yield from _in_directory(root, directory, entries, notices)


def _directories(root: Path) -> Iterator[tuple[Path, list[Path], list[Notice]]]:
    """Every directory below ``root`` once, by device and inode, with its entries sorted by name."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting and len(seen) < MAX_DIRECTORIES:
        directory = waiting.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(Path(entry.path) for entry in os.scandir(directory))
        except OSError as error:
            reason = f"the directory cannot be read ({error.strerror})"
            yield directory, [], [Notice("E_UNREADABLE", reason, str(directory))]
            continue
        waiting += [entry for entry in reversed(entries) if entry.is_dir() and entry.name != ".git"]
        yield directory, [entry for entry in entries if not entry.is_dir()], []


def _in_directory(root: Path, directory: Path, entries: list[Path], notices: list[Notice]) -> Iterator[Checkpoint]:
    relative = directory.relative_to(root).as_posix()
    name = (root.name or root.absolute().name or "/") if relative == "." else relative
    if notices:
        yield Checkpoint(name, directory, (), notices=tuple(notices))
        return
    side = [path for path in entries if SIDE_FILES.fullmatch(path.name)]
    set_aside = [(path, "holds no weights by its name") for path in side]
    candidates = [path for path in entries if path.suffix in SUFFIXES and path not in side]
    refused = [path for path in entries if path.suffix in REFUSED_SUFFIXES]
    groups = sorted(_groups(directory, entries, candidates), key=lambda group: group.preference)
    if not groups:
        if refused:
            reason = REFUSED_SUFFIXES[refused[0].suffix]
            yield Checkpoint(name, directory, (), notices=(Notice("E_FORMAT_REFUSED", reason, str(refused[0])),))
        return
    set_aside += [(path, REFUSED_SUFFIXES[path.suffix]) for path in refused]
    standard = [group for group in groups if group.stem in STANDARD or group.weight_map is not None]
    stems = {group.stem for group in groups}
    if standard or len(stems) == 1:
        main = standard[0] if standard else groups[0]
        others = [
            (path, f"{main.files[0].name if main.files else main.stem} is read")
            for g in groups
            if g is not main
            for path in g.files
        ]
        yield _checkpoint(name, directory, (main,), tuple(set_aside + others))
        return
    for stem in sorted(stems):
        same = [group for group in groups if group.stem == stem]
        first = same[0].files[0] if same[0].files else directory / stem
        own = first.name if len(same[0].files) == 1 else stem
        others = [(path, f"{first.name} is read") for group in same[1:] for path in group.files]
        full = own if relative == "." else f"{relative}/{own}"
        yield _checkpoint(full, first if len(same[0].files) == 1 else directory, (same[0],), tuple(others))


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix)


def _groups(directory: Path, entries: list[Path], candidates: list[Path]) -> Iterator[_Group]:
    """Sets of files: those that an index names, those that shard numbers join, and single ones."""
    left = list(candidates)
    for index in (path for path in entries if path.name.endswith(INDEX_SUFFIX)):
        if not any(index.name.endswith(suffix + INDEX_SUFFIX) for suffix in SUFFIXES):
            continue
        group = _indexed(directory, index, left)
        if group is not None:
            left = [path for path in left if path not in group.files]
            yield group
    shards: dict[tuple[str, str, str], dict[int, Path]] = {}
    for path in list(left):
        match = SHARD.fullmatch(path.name)
        if match:
            key = (match["stem"], match["count"], match["suffix"])
            shards.setdefault(key, {})[int(match["number"])] = path
            left.remove(path)
    for (stem, count, suffix), present in shards.items():
        yield _numbered(directory, stem, int(count), suffix, present)
    consolidated = [path for path in left if re.fullmatch(r"consolidated\.\d\d\.pth", path.name)]
    for path in left:
        if path not in consolidated:
            yield _Group(_stem(path), (path,))
    if consolidated:
        notice = Notice(
            "E_FORMAT_REFUSED",
            "tensor-parallel shards are not put together; convert the checkpoint to safetensors",
            str(consolidated[0]),
        )
        refused = () if len(consolidated) == 1 else (notice,)
        yield _Group("consolidated", tuple(consolidated[:1] if not refused else ()), notices=refused)


def _numbered(directory: Path, stem: str, count: int, suffix: str, present: dict[int, Path]) -> _Group:
    """Shards without an index: their own numbers say which are missing."""
    first = min(present, default=1)
    expected = range(min(first, 1), min(first, 1) + min(count, 100_000))
    missing = [number for number in expected if number not in present]
    notices = tuple(
        Notice(
            "E_SHARD_MISSING", f"shard {number} of {count} is not there; fetch it", str(directory / f"{stem}*{suffix}")
        )
        for number in missing[:100]
    )
    return _Group(stem, tuple(present[number] for number in sorted(present)), notices=notices)


def _indexed(directory: Path, index: Path, candidates: list[Path]) -> _Group | None:
    """The shards that an index names; one that cannot be used leaves them to their numbers, with a notice."""
    stem = index.name.removesuffix(INDEX_SUFFIX)
    stem, suffix = stem.removesuffix(Path(stem).suffix), Path(stem).suffix
    beside = tuple(path for path in candidates if path.suffix == suffix and path.name.startswith(stem))
    try:
        weight_map = _weight_map(index)
    except CheckpointError as error:
        return _Group(stem, beside, notices=(error.notice(),))
    notices: list[Notice] = []
    usable: dict[str, Path] = {}
    files: dict[str, Path] = {}
    for file in sorted(set(weight_map.values())):
        path = directory / file
        if not file or "/" in file or "\\" in file or file in (".", "..") or "\0" in file:
            reason = f"names {file[:200]!r}, which is not a plain file name in its directory; it was not followed"
            notices.append(Notice("E_INDEX_ESCAPE", reason, str(index)))
        elif not os.path.lexists(path):
            reason = f"{index.name} names this shard and it is not there; fetch it"
            notices.append(Notice("E_SHARD_MISSING", reason, str(path)))
        else:
            files[file] = path
    for tensor, file in weight_map.items():
        if file in files:
            usable[tensor] = files[file]
    return _Group(stem, tuple(files.values()), usable, tuple(notices))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index, "E_INDEX_INVALID").get("weight_map")
    well_formed = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
    if not well_formed or not weight_map:
        message = "holds no weight_map of tensor names to file names; the shards beside it are read as they are"
        raise CheckpointError("E_INDEX_INVALID", message, path=index)
    return dict(weight_map)


def _checkpoint(
    name: str, path: Path, groups: tuple[_Group, ...], set_aside: tuple[tuple[Path, str], ...]
) -> Checkpoint:
    """Put a checkpoint together: usable files, config, and a notice for each file that cannot be opened."""
    directory = path if path.is_dir() else path.parent
    notices = [notice for group in groups for notice in group.notices]
    files: list[Path] = []
    for file in (file for group in groups for file in group.files):
        notice = _unusable(file)
        if notice is None:
            files.append(file)
        else:
            notices.append(notice)
    config: dict[str, Any] = {}
    try:
        if os.path.lexists(directory / "config.json"):
            config = _read_json(directory / "config.json", "E_CONFIG_INVALID")
    except CheckpointError as error:
        notices.append(error.notice())
    weight_map = groups[0].weight_map
    if weight_map is not None:
        weight_map = {tensor: file for tensor, file in weight_map.items() if file in files}
    return Checkpoint(name, path, tuple(files), weight_map, config, set_aside, tuple(notices))


def _unusable(path: Path) -> Notice | None:
    """Why a weight file cannot be opened at all, by stat alone."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            return Notice("E_DANGLING_LINK", f"is a link that leads nowhere ({error.strerror}); fetch it", str(path))
        return Notice("E_UNREADABLE", f"cannot be looked at ({error.strerror})", str(path))
    if not stat.S_ISREG(status.st_mode):
        return Notice("E_NOT_REGULAR", "is not a regular file; it was not opened", str(path))
    if status.st_size == 0:
        return Notice("E_EMPTY_FILE", "holds no byte; fetch it again", str(path))
    if not os.access(path, os.R_OK):
        return Notice("E_UNREADABLE", "cannot be read (permission denied)", str(path))
    return None


def _read_json(path: Path, code: str) -> dict[str, Any]:
    """A JSON object from a small regular file; raises CheckpointError with ``code``."""
    notice = _unusable(path)
    if notice is not None:
        raise CheckpointError(code, notice.reason, path=path)
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(code, f"is larger than the limit of {MAX_JSON} bytes", path=path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        detail = " ".join(str(error).split())[:100]
        raise CheckpointError(code, f"is not valid JSON ({detail})", path=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(code, "is valid JSON but not an object", path=path)
    return value
