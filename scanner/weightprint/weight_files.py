"""Which files of one directory are weights, and which of them belong together. Told by names and by shard indices.

A set is one model: a single file, shards that an index names, or shards that carry their number (00001-of-00003).
Names only propose: what a file holds, its content decides later. No weight file is opened here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from weightprint.errors import CheckpointError, Notice
from weightprint.formats.notices import MAX_ALIKE
from weightprint.formats.opened import is_text, open_file, require_readable

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of files that may hold weights."""

STANDARD = (
    "model",
    "pytorch_model",
    "diffusion_pytorch_model",
    "open_clip_model",
    "open_clip_pytorch_model",
    "consolidated",
    "adapter_model",
)
"""Names that libraries give to the weights of a directory, the one to read first; the rest is the same model."""

SIDE_FILES = re.compile(
    r"(\._.*|training_args|optimizer.*|optim|scheduler.*|scaler|rng_state.*|random_states.*|trainer_state|"
    r"tokenizer.*|sentencepiece.*|vocab.*|.*[-_.]optim(izer)?([-_.].*)?|.*optim_states)\.(safetensors|bin|pt|pth|ckpt)"
)
"""Files beside weights that hold none: states of the trainer, tokenizers, the shadow files of macOS."""

WEIGHTY = r"(?i:.*(model|weight|param|checkpoint|ckpt).*)"
REFUSED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r".*\.gguf", "is GGUF, which is not read; scan the float checkpoint that it was made from"),
        (WEIGHTY + r"\.(h5|hdf5)|.*\.keras", "is a Keras file, which is not read; convert the model to safetensors"),
        (WEIGHTY + r"\.msgpack", "is a Flax file, which is not read; convert the model to safetensors"),
        (WEIGHTY + r"\.npz", "is a numpy archive, which is not read; convert the model to safetensors"),
        (r".*\.onnx", "is ONNX, which is not read; scan the checkpoint that it was exported from"),
        (r".*\.tflite", "is TFLite, which is not read; scan the checkpoint that it was made from"),
        (r".*\.nemo", "is a NeMo archive, which is not read; unpack it and scan the weights inside"),
        (r".*\.ckpt\.data-\d+-of-\d+|saved_model\.pb", "is TensorFlow, which is not read; convert it to safetensors"),
        (r".*\.distcp", "is a distributed checkpoint, which is not read; convert it with dcp_to_torch_save of PyTorch"),
        (r"rust_model\.ot", "is a file of rust-bert, which is not read; scan the checkpoint that it was made from"),
    )
)
"""Names of formats that are known and not read, and what to do."""

SHARD = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d{2,6})[-_]of[-_](?P<count>\d{2,6})(?P<suffix>\.[a-z]+)")
PARALLEL_SHARD = re.compile(r"consolidated\.\d\d\.pth")
INDEX = re.compile(r"(?P<stem>.+)(?P<suffix>\.safetensors|\.bin|\.pt|\.pth|\.ckpt)\.index\.json")
MAX_INDEX = 64 * 2**20


@dataclass(frozen=True)
class WeightSet:
    """Weight files that are one model. ``missing`` says what of it is not there or not usable."""

    stem: str
    suffix: str
    files: tuple[Path, ...]
    weight_map: dict[str, Path] | None = None
    missing: tuple[Notice, ...] = ()

    @property
    def is_standard(self) -> bool:
        """Whether its name or its index says that it is the model of its directory."""
        return self.weight_map is not None or self.stem.split(".")[0] in STANDARD

    @property
    def preference(self) -> tuple[bool, bool, bool, int, bool, int, str]:
        """Smallest is read first: what can be read, whole models before adapters, safetensors, the usual names, single
        files before shards, the plain name before its variants (``model.fp16``)."""
        base = self.stem.split(".")[0]
        return (
            not any(why_unusable(path) is None for path in self.files),
            base == "adapter_model",
            self.suffix != ".safetensors",
            STANDARD.index(base) if base in STANDARD else len(STANDARD),
            self.weight_map is not None,
            self.stem.count("."),
            self.stem,
        )


@dataclass(frozen=True)
class Sorted:
    """The files of one directory: sets of weights, best first; side files and refused ones, each with the reason."""

    sets: tuple[WeightSet, ...]
    side: tuple[tuple[Path, str], ...]
    refused: tuple[tuple[Path, str], ...]


def sort_files(directory: Path, entries: Sequence[Path]) -> Sorted:
    """Sort the files ``entries`` of ``directory``."""
    side, refused, candidates = [], [], []
    names = {path.name for path in entries}
    parallel = [path for path in entries if PARALLEL_SHARD.fullmatch(path.name)]
    for path in entries:
        reason = refusal(path, names)
        if len(parallel) > 1 and path in parallel:
            # Each holds a part of every tensor, so only one that is alone can be read.
            refused.append((path, "is a tensor-parallel shard; these are not put together, convert to safetensors"))
        elif reason is not None:
            refused.append((path, reason))
        elif SIDE_FILES.fullmatch(path.name):
            side.append((path, "holds no weights by its name"))
        elif path.suffix in SUFFIXES:
            candidates.append(path)
    sets = sorted(_sets(directory, entries, candidates), key=lambda entry: entry.preference)
    named = {path for entry in sets for path in entry.files}  # an index may name any file
    left = (tuple(entry for entry in aside if entry[0] not in named) for aside in (side, refused))
    return Sorted(tuple(sets), *left)


def refusal(path: Path, siblings: Set[str] = frozenset()) -> str | None:
    """Why a file of this name is known not to be read, or None."""
    if path.suffix == ".bin" and f"{path.stem}.xml" in siblings:
        return "is OpenVINO, which is not read; scan the checkpoint that it was made from"
    return next((reason for pattern, reason in REFUSED if pattern.fullmatch(path.name)), None)


def lone_file(path: Path) -> WeightSet:
    """The set of a file that was named by itself."""
    return WeightSet(path.name.removesuffix(path.suffix), path.suffix, (path,))


def why_unusable(path: Path) -> Notice | None:
    """Why a file cannot be opened at all, by stat alone; None if it can."""
    try:
        require_readable(path)
    except CheckpointError as error:
        return error.notice()
    return None


def _sets(directory: Path, entries: Sequence[Path], candidates: Sequence[Path]) -> Iterator[WeightSet]:
    """Sets by index first, then by shard number, then single files."""
    left = list(candidates)
    broken: dict[tuple[str, str], Notice] = {}
    for path, match in _matching(entries, INDEX):
        stem, suffix = match["stem"], match["suffix"]
        try:
            found = _indexed(directory, path, stem, suffix)
        except CheckpointError as error:
            broken[stem, suffix] = error.notice()
            continue
        left = [path for path in left if path not in found.files]
        yield found
    for found in (*_numbered(directory, left), *_single(left)):
        notice = broken.pop((found.stem, found.suffix), None)
        yield found if notice is None else replace(found, missing=(notice, *found.missing))
    for (stem, suffix), notice in broken.items():
        yield WeightSet(stem, suffix, (), missing=(notice,))


def _matching(paths: Sequence[Path], pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in paths:
        match = pattern.fullmatch(path.name)
        if match is not None:
            yield path, match


def _single(candidates: Sequence[Path]) -> Iterator[WeightSet]:
    for path in candidates:
        if not SHARD.fullmatch(path.name):
            yield lone_file(path)


def _numbered(directory: Path, candidates: Sequence[Path]) -> Iterator[WeightSet]:
    """Shards without an index: their own numbers say which are missing."""
    series: dict[tuple[str, int, str], dict[int, tuple[Path, re.Match[str]]]] = {}
    for path, match in _matching(candidates, SHARD):
        # One series is spelled in one way: the same but for the digits of the number.
        start, end = match.span("number")
        key = (path.name[:start], end - start, path.name[end:])
        series.setdefault(key, {})[int(match["number"])] = (path, match)
    for (before, width, after), present in series.items():
        match = next(iter(present.values()))[1]
        missing = _missing(directory, before, width, after, int(match["count"]), set(present))
        files = tuple(present[number][0] for number in sorted(present))
        yield WeightSet(match["stem"], match["suffix"], files, missing=tuple(missing))


def _missing(directory: Path, before: str, width: int, after: str, count: int, present: Set[int]) -> Iterator[Notice]:
    """A notice for each shard that is not there; a name may claim a million siblings, so only the first are named."""
    first = min(1, *present)
    expected = range(first, first + count)
    for number in islice((number for number in expected if number not in present), MAX_ALIKE - 1):
        reason = f"shard {number} of {count} is not there; fetch it"
        yield Notice("E_SHARD_MISSING", reason, str(directory / f"{before}{number:0{width}}{after}"))
    unnamed = count - sum(number in expected for number in present) - (MAX_ALIKE - 1)
    if unnamed > 0:
        yield Notice("E_SHARD_MISSING", f"the same holds for {unnamed} more", str(directory))


def _indexed(directory: Path, index: Path, stem: str, suffix: str) -> WeightSet:
    """The shards that an index names; raises CheckpointError E_INDEX_INVALID."""
    weight_map = _weight_map(index)
    missing: list[Notice] = []
    present: dict[str, Path] = {}
    for file in sorted(set(weight_map.values())):
        path = directory / file
        if not _is_plain(file):
            reason = f"names {file[:200]!r}, which is no plain file name in its directory; it was not followed"
            missing.append(Notice("E_INDEX_ESCAPE", reason, str(index)))
        elif not os.path.lexists(path):
            missing.append(Notice("E_SHARD_MISSING", f"is named by {index.name} and not there; fetch it", str(path)))
        else:
            present[file] = path
    usable = {tensor: present[file] for tensor, file in weight_map.items() if file in present}
    return WeightSet(stem, suffix, tuple(present.values()), usable, tuple(missing))


def _is_plain(file: str) -> bool:
    return is_text(file) and file not in ("", ".", "..") and not any(mark in file for mark in "/\\\0")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index, "E_INDEX_INVALID", MAX_INDEX, unique=True).get("weight_map")
    well_formed = isinstance(weight_map, dict) and all(
        isinstance(file, str) and is_text(tensor) for tensor, file in weight_map.items()
    )
    if not weight_map or not well_formed:
        message = "holds no weight_map of tensor names to file names; the shards beside it are read as they are"
        raise CheckpointError("E_INDEX_INVALID", message, path=index)
    return dict(weight_map)


def read_json_object(path: Path, code: str, limit: int, unique: bool = False) -> dict[str, Any]:
    """A JSON object from a small regular file; raises CheckpointError with ``code``. ``unique`` refuses a key that
    stands twice."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if unique and len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        with open_file(path) as file:
            if file.size > limit:
                raise CheckpointError(code, f"is {file.size} bytes long, limit {limit}", path=path)
            value = json.loads(file.read(0, limit), object_pairs_hook=checked)
    except CheckpointError as error:
        kept = error.code if error.code in ("E_UNREADABLE", "E_READ") else code
        raise CheckpointError(kept, error.message, path=path) from None
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:100]
        raise CheckpointError(code, f"is not valid JSON ({detail}); fetch it again", path=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(code, "is valid JSON but not an object; fetch it again", path=path)
    return value
