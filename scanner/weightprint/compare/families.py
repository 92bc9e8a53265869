"""Families: checkpoints joined by evidence, whatever path it takes. Screen scores join nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from weightprint.compare.comparisons import WORDS, words_of
from weightprint.data import Comparison

EVIDENCE = frozenset({"identical", "re-encoded", "shared-origin"})

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Link:
    """One pair that joins a family."""

    a: str
    b: str
    verdict: str
    log10_p: float | None


@dataclass(frozen=True)
class Parent:
    """One parent of a merge candidate: its share with an error bar of one standard deviation, and z of its order of
    units with the merge's, given the other parent."""

    name: str
    partial_z: float | None
    weight: float
    weight_error: float


@dataclass(frozen=True)
class Merge:
    """A member that looks like a merge of two others: a candidate, never a verdict. ``kind`` is "linear"
    or "of unrelated"; ``exact`` says that it lies between these very two up to the rounding of storage."""

    member: str
    parents: tuple[Parent, ...]
    kind: str
    reason: str
    exact: bool = False


@dataclass(frozen=True)
class Family:
    """One connected component: names in order, the pairs that join them, and which members may be merges of others."""

    members: tuple[str, ...]
    evidence: tuple[Link, ...]
    merges: tuple[Merge, ...] = ()


def families(comparisons: Sequence[Comparison]) -> tuple[Family, ...]:
    """Connected components over identical, re-encoded and shared-origin pairs of judged comparisons, largest first."""
    joining = np.isin(words_of(comparisons), [WORDS.index(word) for word in EVIDENCE])
    links = [Link(c.a, c.b, c.verdict, c.log10_p) for c in (comparisons[at] for at in np.flatnonzero(joining).tolist())]
    family_of = components((link.a, link.b) for link in links)
    members: dict[str, list[str]] = {}
    evidence: dict[str, list[Link]] = {}
    for name, root in family_of.items():
        members.setdefault(root, []).append(name)
    for link in links:
        evidence.setdefault(family_of[link.a], []).append(link)
    found = [Family(tuple(sorted(names)), tuple(evidence[root])) for root, names in members.items()]
    return tuple(sorted(found, key=lambda family: (-len(family.members), family.members)))


def components(edges: Iterable[tuple[Name, Name]]) -> dict[Name, Name]:
    """Each name of an edge with a name that stands for its connected component."""
    parent: dict[Name, Name] = {}

    def root(name: Name) -> Name:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in edges:
        parent[root(a)] = root(b)
    return {name: root(name) for name in list(parent)}
