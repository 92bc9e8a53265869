"""Which of two related checkpoints came first: nobody knows, unless a cue says so. Undirected by default.

Cues, each named in the report, all from fingerprints:

* rounding: both hold the same weights in two formats. A conversion to the finer format is exact, so where figures
  differ and those of the coarser are the finer's, rounded, the finer one is older. So that no small fine-tune passes
  for a cast, the largest weights of at least 8 matrices must lie anywhere between two steps: root mean square of the
  distance at least 0.2 steps (evenly spread 0.29, and less where hardly anything moved);
* layers: the layers of one are those of the other, unit energies equal to the last bit, twice or left out: the one that
  holds each once, or all of them, is older;
* heads, experts: the same of value heads, and of experts that all equal one dense block;
* merge: an exact merge candidate is younger than its parents.

Given up: all that was trained on after it was cut, repeated or upcycled. A sibling of the true parent would pass for
the parent there, and a wrong direction is worse than none. For the same reason there is no direction, and a reason,
where cues disagree and where several checkpoints of the report would do as the older one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.families import EVIDENCE, Family
from weightprint.compare.prepared import Prepared
from weightprint.compare.sameness import FORMATS, matched
from weightprint.data import FLOAT32, Comparison, MatrixStats

MOST_PAIRS = 20_000
"""Related pairs that are looked at; beyond, families are so large that no direction is stated."""

_FEWEST_MATRICES = 8
_LEAST_SPREAD = 0.2
_MOST_NAMED = 3
_ROUNDED_FROM = frozenset(
    [("f32", "bf16"), ("f32", "f16")] + [(fine, f8) for fine in ("f32", "f16", "bf16") for f8 in ("f8_e4m3", "f8_e5m2")]
)
"""Formats of which the second is usually made from the first; f16 and bf16 are both made from f32."""

_EXPERT_CHANNELS = ("gate", "up", "down")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Direction:
    """Which of a pair is older and what says so; ``older`` and ``younger`` None where cues disagree, and ``reason``
    then says how."""

    older: str | None
    younger: str | None
    cues: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class _Cue:
    """``what`` says that ``older`` came before the other of its pair; ``kind`` is the sort of cue."""

    kind: str
    older: str
    what: str


def directions(
    comparisons: Iterable[Comparison], sides: Callable[[str], Prepared | None], families: Sequence[Family] = ()
) -> dict[Pair, Direction]:
    """Directions of the related pairs of ``comparisons``, a whole report's, by their two names as given there; pairs
    without a cue are left out. ``sides`` gives a checkpoint by name, None where it cannot be had."""
    merged = {
        (parent.name, merge.member): merge
        for family in families
        for merge in family.merges
        if merge.exact
        for parent in merge.parents
    }
    cues: dict[Pair, list[_Cue]] = {}
    twins: dict[str, set[str]] = {}
    for comparison in comparisons:
        a, b = comparison.a, comparison.b
        if comparison.verdict not in EVIDENCE:
            continue
        if comparison.verdict == "identical":
            twins.setdefault(a, set()).add(b)
            twins.setdefault(b, set()).add(a)
        first, second = sides(a), sides(b)
        if first is None or second is None:
            continue
        own = list(_cues(comparison, first, second))
        for older, younger in ((a, b), (b, a)):
            if (older, younger) in merged:
                kind = merged[older, younger].kind
                what = f"{younger} is a merge candidate ({kind}) of which {older} is a parent"
                own.append(_Cue("merge", older, what))
        if own:
            cues[a, b] = own
    rivals: dict[tuple[str, str], set[str]] = {}
    for (a, b), own in cues.items():
        for cue in own:
            younger = b if cue.older == a else a
            many = {cue.older} if cue.kind != "merge" else {cue.older, *twins.get(cue.older, ())}
            rivals.setdefault((younger, cue.kind if cue.kind != "merge" else cue.what), set()).update(many)
    return {pair: _agreed(pair, own, rivals) for pair, own in cues.items()}


def _agreed(pair: Pair, cues: Sequence[_Cue], rivals: Mapping[tuple[str, str], set[str]]) -> Direction:
    """The direction that all cues give, unless they hold of another checkpoint in the older one's place as well."""
    texts = tuple(cue.what for cue in cues)
    olders = {cue.older for cue in cues}
    if len(olders) > 1:
        return Direction(None, None, texts, "cues of direction disagree, so none is stated: " + "; ".join(texts))
    older = olders.pop()
    younger = pair[1] if older == pair[0] else pair[0]
    sure = [cue for cue in cues if len(rivals[younger, cue.kind if cue.kind != "merge" else cue.what]) == 1]
    if not sure:
        cue = cues[0]
        others = rivals[younger, cue.kind if cue.kind != "merge" else cue.what] - {older}
        also = ", ".join(sorted(others)[:_MOST_NAMED]) + (", ..." if len(others) > _MOST_NAMED else "")
        reason = f"no direction is stated: {cue.what}, but the same is true of {also} in its place"
        return Direction(None, None, texts, reason)
    return Direction(older, younger, tuple(cue.what for cue in sure))


def _cues(comparison: Comparison, a: Prepared, b: Prepared) -> Iterator[_Cue]:
    names = (comparison.a, comparison.b)
    if comparison.verdict == "re-encoded":
        yield from _rounding(names, a, b)
    if _dtypes(a) != _dtypes(b) or any(side.fingerprint.status != "complete" for side in (a, b)):
        return
    yield from _layers(names, a, b)
    heads = getattr(comparison, "head_map", ())
    turned = [(entry[2], entry[3], entry[0], entry[1]) for entry in heads]
    yield from _heads(names, (a, b), heads)
    yield from _heads(names[::-1], (b, a), turned)
    yield from _experts(names, (a, b))
    yield from _experts(names[::-1], (b, a))


def _rounding(names: Pair, a: Prepared, b: Prepared) -> Iterator[_Cue]:
    one, other = _dtypes(a), _dtypes(b)
    if len(one) != 1 or len(other) != 1 or one == other or not {*one, *other} <= FORMATS.keys():
        return
    steps = {dtype: FORMATS[dtype][0] for dtype in (*one, *other)}
    fine, coarse = min(steps, key=lambda dtype: steps[dtype]), max(steps, key=lambda dtype: steps[dtype])
    pairs = matched(a.fingerprint, b.fingerprint)
    if pairs is None or (fine, coarse) not in _ROUNDED_FROM:
        return
    of_a = fine in one
    spread = rounding_spread([(m, n) if of_a else (n, m) for m, n in pairs], coarse)
    if spread is not None and spread >= _LEAST_SPREAD:
        older, younger = names if of_a else names[::-1]
        yield _Cue(
            "rounding",
            older,
            f"{younger} ({coarse}) holds what {older} ({fine}) holds, rounded; the way back would be exact",
        )


def rounding_spread(pairs: Sequence[tuple[MatrixStats, MatrixStats]], coarse: str) -> float | None:
    """Root mean square distance, in steps of the coarser format, of the largest weights of the finer matrices from
    those of the coarser; None unless every coarser one is the finer one rounded to nearest, or where too few are."""
    roundoff, least = FORMATS[coarse]
    distances = []
    for fine, rounded in pairs:
        if not (fine.abs_max > 0 and math.isfinite(fine.abs_max) and math.isfinite(rounded.abs_max)):
            return None
        # The unit roundoff is half the distance of neighbours at 1.
        step = max(2.0 ** math.floor(math.log2(fine.abs_max)) * 2 * roundoff, least)
        distance = abs(fine.abs_max - rounded.abs_max) / step
        if distance > 0.5:
            return None
        distances.append(distance)
    if len(distances) < _FEWEST_MATRICES:
        return None
    return math.sqrt(sum(distance**2 for distance in distances) / len(distances))


def _layers(names: Pair, a: Prepared, b: Prepared) -> Iterator[_Cue]:
    one, other = _layer_contents(a), _layer_contents(b)
    if one is None or other is None or one == other or len(one) + len(other) < 4:
        return
    for own, of, side, partner, older, younger in (
        (one, other, a, b, *names),
        (other, one, b, a, *names[::-1]),
    ):
        once = max(own.values()) == 1 and not any(group.control.copies for group in side.groups)
        if once and set(own) == set(of) and max(of.values()) > 1:
            repeated = sum(count - 1 for count in of.values())
            what = f"{younger} holds the layers of {older}, {repeated} of them again; {older} holds each once"
            yield _Cue("layers repeated", older, what)
        elif (
            once and set(of) < set(own) and max(of.values()) == 1 and not any(g.control.copies for g in partner.groups)
        ):
            yield _Cue(
                "layers left out", older, f"the {len(of)} layers of {younger} are some of the {len(own)} of {older}"
            )


def _layer_contents(side: Prepared) -> Counter[bytes] | None:
    """The layers of the only stack by their unit energies, to the last bit; None where that says too little."""
    if len(side.stacks) != 1:
        return None
    rows: dict[int, list[bytes]] = {}
    for group in sorted(side.groups, key=lambda group: group.channel):
        if group.units < _FEWEST_MATRICES or not np.isfinite(group.energies).all():
            return None
        for position, row in zip(group.positions, group.energies, strict=True):
            rows.setdefault(position, []).append(group.channel.encode() + row.tobytes())
    return Counter(b"".join(parts) for parts in rows.values()) if rows else None


def _heads(names: Pair, pair: tuple[Prepared, Prepared], heads: Iterable[Sequence[float]]) -> Iterator[_Cue]:
    """``heads`` are (layer, head) of the first and of the second that found each other; the first is the full one if
    every value head of the second is one of the first, and the first has more, none of them a copy of another."""
    full, cut = (_head_energies(side) for side in pair)
    if full is None or cut is None or len(cut) >= len(full):
        return
    partner = {(int(e[2]), int(e[3])): (int(e[0]), int(e[1])) for e in heads}
    if len(set(partner.values())) < len(cut) or not set(partner) >= set(cut):
        return
    if all(partner[key] in full and np.array_equal(full[partner[key]], cut[key]) for key in cut):
        what = f"the {len(cut)} value heads of {names[1]} are some of the {len(full)} of {names[0]}"
        yield _Cue("heads left out", names[0], what)


def _head_energies(side: Prepared) -> dict[tuple[int, int], FLOAT32] | None:
    found: dict[tuple[int, int], FLOAT32] = {}
    for group in side.groups:
        if group.channel != "v":
            continue
        if not group.head_width or group.head_width < _FEWEST_MATRICES or group.copied_parts:
            return None
        for layer, row in zip(group.layers, group.energies, strict=True):
            for head, own in enumerate(row.reshape(-1, group.head_width)):
                found[layer, head] = own
    return found or None


def _experts(names: Pair, pair: tuple[Prepared, Prepared]) -> Iterator[_Cue]:
    """The first is dense and every expert of the second is it."""
    dense, sparse = (side.fingerprint.energies for side in pair)
    keys = [key for key in dense if key[2] in _EXPERT_CHANNELS]
    numbers = set()
    for key in keys:
        own, others = dense[key], sparse.get(key)
        if others is None or len(own) < _FEWEST_MATRICES or len(others) <= len(own) or len(others) % len(own):
            return
        if not (others.reshape(-1, len(own)) == own).all():
            return
        numbers.add(len(others) // len(own))
    if len(numbers) == 1:
        what = f"all {numbers.pop()} experts of every layer of {names[1]} are the dense block of {names[0]}"
        yield _Cue("experts", names[0], what)


def _dtypes(side: Prepared) -> frozenset[str]:
    return frozenset(matrix.dtype for matrix in side.fingerprint.matrices)
