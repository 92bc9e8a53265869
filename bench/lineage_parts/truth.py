"""What is true of the checkpoints of a directory: a zoo's lineage.json, the published checkpoints, or a truth file.

A truth file is JSON, ``{"members": [{"name", "seeds", ...}]}``: ``name`` as a scan gives it, ``seeds`` whatever names
the initialisations that its weights go back to. Two members are related if they share a seed. The other fields are
those of lineage.json (bench/zoo_parts/lineage.py) and may be absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightprint.data import Comparison

FINDABLE = ("same order", "heads moved")
"""What may have happened to attention units for the order code to find them."""

PUBLISHED: Mapping[str, str] = {
    "rxnfp-bert-pretrained": "rxnfp",
    "rxnfp-bert-ft": "rxnfp",
    "rxnfp-bert-ft-10k-25s": "rxnfp",
    "all-minilm-l6-v2": "minilm",
    "microformer-mgm": "mgm",
    "antiberty": "antiberty",
}
"""The published checkpoints of tools/fetch_real.py and what each goes back to."""


@dataclass(frozen=True)
class Truth:
    """What is true of one checkpoint. ``expected`` are words of which any is right against its first origin; ``older``
    are the members that are certainly older than it."""

    name: str
    kind: str
    seeds: frozenset[str]
    origins: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    attention: str = "same order"
    expected: tuple[str, ...] = ()
    older: frozenset[str] = frozenset()
    declared: tuple[str, ...] = ()
    declared_true: bool = True
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Held:
    """A pair and what is true of it. ``findable``: related, and neither side's attention units lost their order."""

    found: Comparison
    a: Truth
    b: Truth

    @property
    def related(self) -> bool:
        return bool(self.a.seeds & self.b.seeds)

    @property
    def findable(self) -> bool:
        return self.related and self.a.attention in FINDABLE and self.b.attention in FINDABLE

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.a.name, self.b.name})


def truths_of(path: Path) -> dict[str, Truth]:
    """The truths of lineage.json or of a truth file; raises ValueError with the reason if it is neither."""
    document = json.loads(path.read_text())
    try:
        members = [_truth(member) for member in document["members"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path} has no "members" with "name" and "seeds" each: {error!r}') from error
    return {member.name: member for member in members}


def published_truths() -> dict[str, Truth]:
    """The truths of the published checkpoints."""
    return {name: Truth(name, "published", frozenset({seed})) for name, seed in PUBLISHED.items()}


def _truth(member: Mapping[str, Any]) -> Truth:
    declared = member.get("declared") or {}
    return Truth(
        name=member["name"],
        kind=member.get("kind", "given"),
        seeds=frozenset(map(str, member["seeds"])),
        origins=tuple(member.get("origins", ())),
        parents=tuple(member.get("parents", ())),
        attention=member.get("attention", "same order"),
        expected=tuple(member.get("expected", ())),
        older=frozenset(older for older, younger in member.get("direction", ()) if younger == member["name"]),
        declared=tuple(declared.get("base", ())),
        declared_true=declared.get("true", True),
        weights=member.get("weights"),
    )
