"""The scan: every checkpoint below some paths, fingerprinted once, compared with the references and with each other.

One fault costs one checkpoint. What is done is in the store at once, so an interrupted scan goes on where it stopped.
No weight is read twice, and torch is imported only if some checkpoint is not fresh.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightprint import store as stores
from weightprint.attention_part import attention_part
from weightprint.compare import ALPHA, Family
from weightprint.compare.copies import Copies
from weightprint.compare.direction import Direction, Pair
from weightprint.compare.verdict import Judged
from weightprint.data import Checkpoint, Comparison, Fingerprint, SourceFile
from weightprint.errors import DeviceError, Notice, StoreError, UsageError, WeightprintError
from weightprint.fingerprint import Structure, fingerprint_from, read_structure, without_weights
from weightprint.fingerprint_file import is_fingerprint, read_fingerprint
from weightprint.gather import Sources, gather_references, gather_scanned, one_checkpoint
from weightprint.index import stored_of
from weightprint.lineage import DeclaredFinding, lineage
from weightprint.match import match
from weightprint.reading import Read

if TYPE_CHECKING:
    from weightprint.engine.protocol import Engine, Pending


AHEAD = 8
"""Checkpoints whose headers are read while the weights of one are on their way."""

FEWEST_PAIRS_FOR_A_DEVICE = 20_000


@dataclass(frozen=True)
class ScanOptions:
    """What to scan and how. ``references`` None means the default reference set."""

    paths: tuple[Path, ...]
    store: Path
    references: tuple[Path, ...] | None = None
    device: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rescan: bool = False
    alpha: float = ALPHA
    read: Read = Read.attention


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint. ``fresh`` says that its fingerprint was already there and no weight was read;
    ``unsaved`` why it could not be kept in the store; ``set_aside`` which weight-like files are not read, and why;
    ``copies`` which of its layers are copies of each other."""

    fingerprint: Fingerprint
    seconds: float
    fresh: bool
    reference: bool = False
    unsaved: Notice | None = None
    set_aside: tuple[tuple[Path, str], ...] = ()
    copies: tuple[Copies, ...] = ()


@dataclass(frozen=True)
class Report:
    """A finished scan. ``outcomes`` are the checkpoints of the scanned paths, ``references`` those compared with;
    ``directions`` are by the two names of a pair, ``declared`` origins by the checkpoint's name."""

    outcomes: tuple[Outcome, ...]
    references: tuple[Outcome, ...]
    comparisons: Sequence[Comparison]
    families: tuple[Family, ...]
    notices: tuple[Notice, ...]
    seconds: float
    alpha: float
    backend: str
    directions: Mapping[Pair, Direction] = field(default_factory=dict)
    declared: Mapping[str, tuple[DeclaredFinding, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Progress: checkpoint number ``done`` of ``total`` has come out as ``outcome``."""

    done: int
    total: int
    outcome: Outcome


Watch = Callable[[Step], None]


class LazyEngine:
    """The engine, built when the first checkpoint needs it: a scan in which all is fresh imports nothing heavy.

    ``before`` is called once before that, so that what would make the reading useless is said first. Use it as a
    context: leaving it ends its threads.
    """

    def __init__(self, device: str, before: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self._before = before
        self._engine: Engine | None = None

    def __enter__(self) -> LazyEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._engine is not None:
            self._engine.__exit__(*exception)

    @property
    def description(self) -> str:
        """What computes, and why; what had to be redone elsewhere."""
        return "none needed" if self._engine is None else self._engine.description

    def get(self) -> Engine:
        """The engine; raises DeviceError if the device is not there."""
        if self._engine is None:
            self._before()
            from weightprint.engine.choose import open_engine

            self._engine = open_engine(self.device)
        return self._engine


def scan(options: ScanOptions, watch: Watch = lambda step: None) -> Report:
    """Scan ``options.paths``; raises UsageError E_NO_CHECKPOINT if nothing is there, DeviceError, or StoreError."""
    started = time.monotonic()
    scanned = gather_scanned(options.paths, options.include, options.exclude, options.store)
    references = gather_references(options.references)
    ordered = list(_largest_first(scanned.checkpoints, _not_scanned(scanned, references)))
    outcomes: list[Outcome] = []
    with _engine_for(options) as engine:
        up_to_date = bring_up_to_date((checkpoint for checkpoint, _ in ordered), options, engine)
        for (_, reference), outcome in zip(ordered, up_to_date, strict=True):
            outcomes.append(replace(outcome, reference=reference))
            watch(Step(len(outcomes), len(ordered), outcomes[-1]))
        backend = engine.description
    scanned_now = [outcome for outcome in outcomes if not outcome.reference]
    others = [Outcome(fingerprint, 0.0, fresh=True) for fingerprint in scanned.fingerprints]
    others += [outcome for outcome in outcomes if outcome.reference]
    others += [Outcome(fingerprint, 0.0, fresh=True, reference=True) for fingerprint in references.fingerprints]
    named = _unique_names(_each_once(scanned_now, others))
    mine = tuple(outcome for outcome in named if not outcome.reference)
    theirs = tuple(outcome for outcome in named if outcome.reference)
    comparisons, theirs, unread = _compare_readable(mine, theirs, options)
    found = lineage(comparisons, [outcome.fingerprint for outcome in (*mine, *theirs)])
    return Report(
        outcomes=tuple(replace(own, copies=label.copies) for own, label in zip(mine, comparisons.labels, strict=False)),
        references=theirs,
        comparisons=comparisons,
        families=found.families,
        notices=(*scanned.notices, *references.notices, *unread, *(o.unsaved for o in outcomes if o.unsaved)),
        seconds=time.monotonic() - started,
        alpha=options.alpha,
        backend=backend,
        directions=found.directions,
        declared=found.declared,
    )


def _not_scanned(scanned: Sources, references: Sources) -> tuple[Checkpoint, ...]:
    """The references' checkpoints that are not scanned themselves, whatever links lead to them."""
    own = {os.path.realpath(checkpoint.path) for checkpoint in scanned.checkpoints}
    return tuple(checkpoint for checkpoint in references.checkpoints if os.path.realpath(checkpoint.path) not in own)


def _engine_for(options: ScanOptions) -> LazyEngine:
    """The engine of a scan, which tries the store before weights are read, not after."""
    return LazyEngine(options.device, partial(stores.require_writable, options.store))


@dataclass(frozen=True)
class _Begun:
    """A checkpoint whose weights are on their way, or of which everything is known already."""

    checkpoint: Checkpoint
    result: Callable[[], Fingerprint]
    ready: Callable[[], bool]
    fresh: bool
    started: float


def bring_up_to_date(checkpoints: Iterable[Checkpoint], options: ScanOptions, engine: LazyEngine) -> Iterator[Outcome]:
    """The fingerprint of each of ``checkpoints``, in order: from the store if it is fresh, else taken and put there.

    While the weights of one are read, the headers of the next are, so that the engine never waits for a header.
    """
    begun: deque[_Begun] = deque()
    free = time.monotonic()
    for checkpoint in checkpoints:
        begun.append(_begin(checkpoint, options, engine))
        while begun and (len(begun) > AHEAD or begun[0].ready()):
            yield _finish(begun.popleft(), options, free)
            free = time.monotonic()
    while begun:
        yield _finish(begun.popleft(), options, free)
        free = time.monotonic()


def _begin(checkpoint: Checkpoint, options: ScanOptions, engine: LazyEngine) -> _Begun:
    def known(structure: Structure) -> Fingerprint | None:
        return None if options.rescan else _fresh(options.store, checkpoint, structure)

    return _known_or_begun(checkpoint, engine, options.read, known)


def _finish(begun: _Begun, options: ScanOptions, free: float) -> Outcome:
    """``free`` is when the checkpoint before it was finished: the time up to then was that one's."""
    found = begun.result()
    # A README that changed needs no weight to be read again.
    fingerprint = replace(found, declared=begun.checkpoint.declared)
    known = begun.fresh and found.declared == fingerprint.declared
    unsaved = _save(options.store, fingerprint) if fingerprint.matrices and not known else None
    return Outcome(
        fingerprint=replace(fingerprint, name=begun.checkpoint.name),
        seconds=time.monotonic() - max(begun.started, free),
        fresh=begun.fresh,
        unsaved=unsaved,
        set_aside=begun.checkpoint.set_aside,
    )


def _save(store: Path, fingerprint: Fingerprint) -> Notice | None:
    """Keep a fingerprint; why it could not be, if so: the rest of the scan does not need it."""
    try:
        stores.save(store, fingerprint)
    except StoreError as error:
        return error.notice()
    return None


def _fresh(store: Path, checkpoint: Checkpoint, structure: Structure) -> Fingerprint | None:
    """The stored fingerprint if it was made of exactly these files and complains of what is wrong now, no more and no
    less: an index or a config that was mended, or has broken since, leaves the weight files as they were.

    One of which attention alone was read is not fresh where all is wanted. One of which all was read is fresh where
    attention is, and gives its attention: so that a scan says the same whatever an earlier one has read.
    """
    found = stores.load_fresh(store, checkpoint, structure.sources)
    if found is None:
        return None
    if found.feed_forward is not None and structure.understanding.feed_forward is None:
        found = attention_part(found)
        if not found.matrices:
            return None
        found = replace(found, bytes=replace(found.bytes, selected=structure.plan.selected, read=structure.plan.read))
    if (found.feed_forward is None) != (structure.understanding.feed_forward is None):
        return None
    complaints = [notice for notice in found.notices if notice.code != "E_NON_FINITE"]
    return found if _without_paths(complaints) == _without_paths(structure.notices) else None


def _without_paths(notices: Sequence[Notice]) -> list[Notice]:
    """The same notices whatever way leads to the files."""
    return [replace(notice, path=None) for notice in notices]


def _known_or_begun(
    checkpoint: Checkpoint, engine: LazyEngine, read: Read, known: Callable[[Structure], Fingerprint | None]
) -> _Begun:
    """What ``known`` has of the checkpoint, else the reading of its weights begun."""
    started = time.monotonic()

    def at_hand(fingerprint: Fingerprint, fresh: bool = False) -> _Begun:
        return _Begun(checkpoint, lambda: fingerprint, lambda: True, fresh, started)

    structure: Structure | None = None
    try:
        structure = read_structure(checkpoint, read)
        fingerprint = known(structure)
        if fingerprint is not None:
            return at_hand(fingerprint, fresh=True)
        if not len(structure.plan):
            return at_hand(without_weights(checkpoint, structure, ()))
        pending = engine.get().submit(structure.plan)
    except Exception as error:  # noqa: BLE001  a bug in one checkpoint must not cost the night
        return at_hand(_failed(checkpoint, structure, error))
    return _Begun(checkpoint, partial(_taken, checkpoint, structure, pending), pending.done, False, started)


def _taken(checkpoint: Checkpoint, structure: Structure, pending: Pending) -> Fingerprint:
    """The fingerprint as the engine has it, or why there is none."""
    try:
        return fingerprint_from(checkpoint, structure, pending.result())
    except Exception as error:  # noqa: BLE001  a bug in one checkpoint must not cost the night
        return _failed(checkpoint, structure, error)


def _failed(checkpoint: Checkpoint, structure: Structure | None, error: Exception) -> Fingerprint:
    """A fault of the checkpoint as its status; one of the device, the store or a setting ends the scan."""
    if isinstance(error, DeviceError | StoreError | UsageError):
        raise error
    if isinstance(error, WeightprintError):
        return without_weights(checkpoint, structure, (error.notice(),))
    reason = f"{type(error).__name__}: {error}; please report this with the output of weightprint inspect"
    notice = Notice("E_INTERNAL", " ".join(reason.split()), str(checkpoint.path))
    return without_weights(checkpoint, structure, (notice,))


def _largest_first(
    checkpoints: Sequence[Checkpoint], references: Sequence[Checkpoint]
) -> Iterator[tuple[Checkpoint, bool]]:
    both = [(checkpoint, False) for checkpoint in checkpoints] + [(checkpoint, True) for checkpoint in references]
    yield from sorted(both, key=lambda entry: -_size(entry[0]))


def _size(checkpoint: Checkpoint) -> int:
    total = 0
    for path in checkpoint.files:
        try:
            total += path.stat().st_size
        except OSError:
            continue  # the reader will say what is wrong with it
    return total


def _each_once(scanned: Sequence[Outcome], others: Sequence[Outcome]) -> list[Outcome]:
    """All of ``scanned``, and those of ``others`` that are not there already: of the same path, whatever links lead to
    it, and made of the same files. At the same path of another machine, or at another time, may lie something else."""
    kept = list(scanned)
    known = {_identity(outcome) for outcome in scanned}
    for outcome in others:
        if not outcome.fingerprint.sources or _identity(outcome) not in known:
            known.add(_identity(outcome))
            kept.append(outcome)
    return kept


def _identity(outcome: Outcome) -> tuple[str, tuple[SourceFile, ...]]:
    return os.path.realpath(outcome.fingerprint.path), outcome.fingerprint.sources


def _unique_names(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Scanned checkpoints keep their names; a reference whose name is taken gets a prefix, and a number if need be."""
    taken: set[str] = set()
    named = []
    for outcome in sorted(outcomes, key=lambda o: (o.reference, o.fingerprint.name, o.fingerprint.path)):
        name = outcome.fingerprint.name
        if name in taken and outcome.reference:
            name = f"reference/{name}"
        base, number = name, 1
        while name in taken:
            number += 1
            name = f"{base} ({number})"
        taken.add(name)
        named.append(replace(outcome, fingerprint=replace(outcome.fingerprint, name=name)))
    return tuple(named)


def _compare_readable(
    mine: tuple[Outcome, ...], theirs: tuple[Outcome, ...], options: ScanOptions
) -> tuple[Judged, tuple[Outcome, ...], tuple[Notice, ...]]:
    """All comparisons, and the references that they were made with: one of the index whose file turns out to be damaged
    or gone, where something is found in it, costs a notice and is not compared. Its pairs have been looked at all the
    same, and count as tested."""
    lost = 0
    notices: list[Notice] = []
    while True:
        try:
            return _compare(mine, theirs, options, lost), theirs, tuple(notices)
        except StoreError as error:
            left = tuple(own for own in theirs if _indexed_file(own) != error.path)
            if len(left) == len(theirs):
                raise
            notices.append(error.notice())
            lost += len(mine) * (len(theirs) - len(left))
            theirs = left


def _indexed_file(outcome: Outcome) -> str | None:
    """The file of a fingerprint of the index."""
    stored = stored_of(outcome.fingerprint)
    return None if stored is None else str(stored.file)


def _compare(mine: Sequence[Outcome], theirs: Sequence[Outcome], options: ScanOptions, lost: int) -> Judged:
    """Each scanned checkpoint with each reference and with each other scanned one; nothing else is tested."""
    fingerprints = [outcome.fingerprint for outcome in (*mine, *theirs)]
    first, second = np.triu_indices(len(mine), 1, len(fingerprints))
    # Few pairs are done before torch is imported.
    device = "cuda" if options.device == "cuda" and len(first) >= FEWEST_PAIRS_FOR_A_DEVICE else "cpu"
    return match(fingerprints, np.stack([first, second], axis=1), options.alpha, device, lost)


def fingerprint_of(path: Path, engine: LazyEngine, read: Read = Read.attention) -> Fingerprint:
    """The fingerprint at ``path``: as it is if it is a fingerprint file, else taken of the checkpoint there."""
    if is_fingerprint(path):
        return read_fingerprint(path)
    return _known_or_begun(one_checkpoint(path), engine, read, lambda structure: None).result()


def distinct_names(first: Fingerprint, second: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """The two under names that differ, by their paths where their names do not."""
    if first.name != second.name:
        return first, second
    if first.path != second.path:
        return replace(first, name=first.path), replace(second, name=second.path)
    return first, replace(second, name=f"{second.name} (2)")


def add_references(
    paths: tuple[Path, ...], directory: Path, device: str, watch: Watch, read: Read = Read.attention
) -> tuple[tuple[Outcome, ...], tuple[Notice, ...]]:
    """Fingerprint everything below ``paths`` into the reference set ``directory``; and what could not be read there."""
    found = gather_scanned(paths, (), (), directory)
    options = ScanOptions(paths=paths, store=directory, device=device, read=read)
    total = len(found.checkpoints) + len(found.fingerprints)
    outcomes: list[Outcome] = []
    with _engine_for(options) as engine:
        for outcome in bring_up_to_date(found.checkpoints, options, engine):
            outcomes.append(outcome)
            watch(Step(len(outcomes), total, outcome))
    taken = [Outcome(fingerprint, 0.0, fresh=True) for fingerprint in found.fingerprints]
    new = _each_once(outcomes, taken)[len(outcomes) :]
    outcomes += [replace(outcome, unsaved=_save(directory, outcome.fingerprint)) for outcome in new]
    return tuple(outcomes), found.notices


@dataclass(frozen=True)
class Forecast:
    """What a scan would do with one checkpoint or reference: nothing if it is fresh, else read so many bytes."""

    checkpoint: Checkpoint
    fresh: bool
    structure: Structure
    reference: bool = False


def forecast(options: ScanOptions) -> tuple[tuple[Forecast, ...], tuple[Notice, ...]]:
    """What a scan with these options would read, and what could not be read of fingerprints; reads no weight."""
    scanned = gather_scanned(options.paths, options.include, options.exclude, options.store)
    references = gather_references(options.references)
    both = [(checkpoint, False) for checkpoint in scanned.checkpoints]
    both += [(checkpoint, True) for checkpoint in _not_scanned(scanned, references)]
    forecasts = []
    for checkpoint, reference in both:
        structure = read_structure(checkpoint, options.read)
        fresh = not options.rescan and _fresh(options.store, checkpoint, structure) is not None
        forecasts.append(Forecast(checkpoint, fresh, structure, reference))
    return tuple(forecasts), (*scanned.notices, *references.notices)
