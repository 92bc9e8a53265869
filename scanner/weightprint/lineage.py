"""What a whole report says beyond its pairs: merge candidates, directions, and declared origins against found ones.

All from fingerprints and judged comparisons. A declared origin is only ever held against a checkpoint of the report
that it names; "contradicts" says that a test was made and found nothing, never that somebody lied.

Bounded work: merges are looked for in families of up to MOST_MEMBERS, directions among up to MOST_PAIRS related pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePath

import numpy as np

from weightprint.compare import WORDS, families, figures_of, prepare
from weightprint.compare.direction import MOST_PAIRS, Direction, Pair, directions
from weightprint.compare.families import EVIDENCE, Family
from weightprint.compare.merges import with_merges
from weightprint.compare.prepared import Prepared
from weightprint.data import Comparison, Declared, Fingerprint
from weightprint.errors import StoreError
from weightprint.index import whole

MOST_MEMBERS = 500
KEPT = 256
_MOST_NAMED = 3
_HUB_PREFIX = "models--"


@dataclass(frozen=True)
class DeclaredFinding:
    """A declared origin and what the report has to say of it: ``matched`` is the checkpoint or reference that it names,
    ``finding`` agrees, contradicts or silent."""

    source: str
    name: str
    matched: str | None
    finding: str
    reason: str


@dataclass(frozen=True)
class Lineage:
    """Families with their merge candidates, directions by pair, findings on declared origins by checkpoint."""

    families: tuple[Family, ...] = ()
    directions: Mapping[Pair, Direction] = field(default_factory=dict)
    declared: Mapping[str, tuple[DeclaredFinding, ...]] = field(default_factory=dict)


def lineage(comparisons: Sequence[Comparison], fingerprints: Sequence[Fingerprint]) -> Lineage:
    """The lineage of a report: ``comparisons`` are judged, ``fingerprints`` all that were compared."""
    by_name = {fingerprint.name: fingerprint for fingerprint in fingerprints}

    @lru_cache(maxsize=KEPT)
    def load(name: str) -> Prepared | None:
        try:
            return prepare(whole(by_name[name])) if name in by_name else None
        except StoreError:
            return None  # of the index, and gone by now; its pairs stand

    found = families(comparisons)
    small = with_merges([family for family in found if len(family.members) <= MOST_MEMBERS], load)
    merged = {family.members: family for family in small}
    found = tuple(merged.get(family.members, family) for family in found)
    return Lineage(found, _directions(comparisons, load, found), judge_declared(comparisons, fingerprints, found))


def _directions(
    comparisons: Sequence[Comparison], load: Callable[[str], Prepared | None], found: Sequence[Family]
) -> dict[Pair, Direction]:
    related = np.flatnonzero(np.isin(figures_of(comparisons).words, [WORDS.index(word) for word in EVIDENCE]))
    if len(related) > MOST_PAIRS:
        return {}
    return directions((comparisons[number] for number in related.tolist()), load, found)


def judge_declared(
    comparisons: Sequence[Comparison], fingerprints: Sequence[Fingerprint], found: Sequence[Family]
) -> dict[str, tuple[DeclaredFinding, ...]]:
    """What is declared against what is found, of every checkpoint that declares an origin."""
    links: dict[str, list[str]] = {}
    for link in (link for family in found for link in family.evidence):
        links.setdefault(link.a, []).append(link.b)
        links.setdefault(link.b, []).append(link.a)
    status = {fingerprint.name: fingerprint.status for fingerprint in fingerprints}
    keys = {fingerprint.name: name_keys(fingerprint) for fingerprint in fingerprints}
    findings = {}
    for own in fingerprints:
        if own.declared:
            others = {name: of for name, of in keys.items() if name != own.name}
            numbers = _pairs_of(comparisons, own.name)
            compared = {name: of for name, of in others.items() if name in numbers}
            findings[own.name] = tuple(
                _finding(
                    own,
                    declared,
                    {name: comparisons[numbers[name]] for name in matches(declared.name, compared)},
                    (links.get(own.name, []), status),
                )
                for declared in own.declared
            )
    return findings


def _pairs_of(comparisons: Sequence[Comparison], name: str) -> dict[str, int]:
    """Numbers of the comparisons of one checkpoint, by the other's name."""
    figures = figures_of(comparisons)
    if name not in figures.table:
        return {}
    place = figures.table.index(name)
    own = np.flatnonzero((figures.names == place).any(axis=1))
    # The other's place is what is left of the sum of both.
    others = (figures.names[own].sum(axis=1) - place).tolist()
    return {figures.table[other]: number for other, number in zip(others, own.tolist(), strict=True)}


def name_keys(fingerprint: Fingerprint) -> tuple[str, ...]:
    """What a checkpoint may be called, in lower case, from its name and its path: "org/model" of every two parts that
    follow each other at the end, or of a hub's cache directory."""
    keys = []
    for text in (fingerprint.name, fingerprint.path):
        parts = [part for part in PurePath(text).parts if part not in ("/", "\\")]
        hub = next((part for part in reversed(parts) if part.startswith(_HUB_PREFIX)), None)
        if hub is not None:
            parts = hub.removeprefix(_HUB_PREFIX).split("--")
        keys.append("/".join(parts).casefold())
    return tuple(keys)


def matches(declared: str, others: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The checkpoints that a declared name may mean: by the whole of it where any fits so, else by as many of its last
    parts as fit one."""
    parts = [part for part in declared.casefold().split("/") if part]
    for tail in ("/".join(parts[start:]) for start in range(len(parts))):
        fitting = [name for name, keys in others.items() if any(f"/{key}".endswith(f"/{tail}") for key in keys)]
        if fitting:
            return fitting
    return []


def _finding(
    own: Fingerprint,
    declared: Declared,
    pairs: Mapping[str, Comparison],
    known: tuple[Sequence[str], Mapping[str, str]],
) -> DeclaredFinding:
    linked, status = known

    def says(finding: str, matched: str | None, reason: str) -> DeclaredFinding:
        return DeclaredFinding(declared.source, declared.name, matched, finding, reason)

    if matches(declared.name, {own.name: name_keys(own)}):
        return says("silent", None, "that is its own name")
    fitting = list(pairs)
    agreeing = next((name for name in fitting if pairs[name].verdict in EVIDENCE), None)
    if agreeing is not None:
        return says("agrees", agreeing, f"{pairs[agreeing].verdict} with {agreeing}")
    if not fitting:
        return says("silent", None, "no checkpoint of this report that it was compared with has that name")
    if len(fitting) > 1:
        return says("silent", None, f"{len(fitting)} checkpoints of this report have that name: {_some(fitting)}")
    (other,) = fitting
    pair = pairs[other]
    unread = next((name for name in (own.name, other) if status[name] != "complete"), None)
    if unread is not None:
        return says("silent", other, f"{unread} is {status[unread]}")
    if pair.log10_p is None or pair.verdict != "no-evidence":
        return says("silent", other, f"{pair.verdict} with {other}")
    also = f"; evidence links it with {_some(linked)}" if linked else ""
    reason = (
        f"declared {declared.name}, but the order of units shows no common origin with it (p = "
        f"{10**pair.log10_p:.2g} after correction), which long training, distillation or another order of units "
        f"explain as well{also}"
    )
    return says("contradicts", other, reason)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MOST_NAMED]) + (", ..." if len(listed) > _MOST_NAMED else "")
