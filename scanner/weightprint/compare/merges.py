"""Merge candidates: members of a family that lie between two others. Candidates, never verdicts; silence is preferred.

For members of one shape, with differences taken from M: a linear merge M = a P1 + (1-a) P2 has P1 - M = (1-a) (P1 - P2)
and P2 - M = -a (P1 - P2). The two differences are antiparallel, correlation -1; along a tree of descent whose steps are
independent it is 0 where M lies between the two, and above 0 else. Two kinds, the first that fits:

* linear: means of all matrices antiparallel (<= -0.9, exact p of that under independent steps <= 1e-6 over all pairs
  looked at), what is left of them within 3 deviations of storage rounding, energies antiparallel too (<= -0.8), and
  0.1 < a < 0.9. The same without the condition on energies where no evidence links the parents: "of unrelated".
* of unrelated: the parents are not linked, and their orders agree less than what passes through M
  (:mod:`weightprint.compare.collider`); the parents themselves, or relatives of them.

Errors are those of the jackknife that leaves out one layer. Bounded work: of every member at most NEAREST best linked
neighbours of its shape, and NEAREST_APART that are not linked with the best of them; identical ones count once.

Given up: merges that trim or drop differences (TIES, DARE), of which energies say nothing that fine-tunes beside merges
do not say too; merges of three and more, of other shapes, weights that differ from layer to layer. Not told apart: a
checkpoint on the straight way of one training run between two others, or one trained on what both were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.compare.collider import LIMIT, Triangle, triangle
from weightprint.compare.families import Family, Link, Merge, Parent, components
from weightprint.compare.merge_figures import Products, about, products, shape_key
from weightprint.compare.prepared import Prepared

NEAREST = 24
NEAREST_APART = 8
KEPT = 256

_MEANS_ANTIPARALLEL = -0.9
_ENERGIES_ANTIPARALLEL = -0.8
_ROUNDING_LIMIT = 3.0
_LOG10_ALPHA = -6.0
_SHARES = (0.1, 0.9)
_FEWEST_LAYERS = 3

NOT_TOLD_APART = (
    "a candidate, not a verdict: a checkpoint on the straight way of one training run between the two, or trained on "
    "what both were trained on, looks the same"
)

Load = Callable[[str], Prepared | None]


@dataclass(frozen=True)
class _Hood:
    """A member, its neighbours, and which pairs of these are linked with each other."""

    middle: Prepared
    names: tuple[str, ...]
    sides: tuple[Prepared, ...]
    linked: frozenset[tuple[int, int]]
    twins: Mapping[str, Sequence[str]]
    figures: Products

    def same_weights(self, *parents: int) -> str:
        """What is said of parents that others are identical to."""
        found = [(self.names[at], self.twins[self.names[at]]) for at in parents if self.twins[self.names[at]]]
        return "".join(f"; {name} is identical to {', '.join(others[:3])}" for name, others in found)

    def apart(self, i: int, j: int) -> bool:
        """Whether no evidence links two neighbours."""
        return (i, j) not in self.linked


def with_merges(found: Sequence[Family], load: Load) -> tuple[Family, ...]:
    """The families with their merge candidates. ``load`` gives a member by name, None where it cannot be had."""
    kept = lru_cache(maxsize=KEPT)(load)
    return tuple(replace(family, merges=tuple(_of_family(family, kept))) for family in found)


def _of_family(family: Family, load: Load) -> Iterator[Merge]:
    if len(family.members) < 3:
        return
    links: dict[str, dict[str, Link]] = {name: {} for name in family.members}
    for link in family.evidence:
        links[link.a][link.b] = links[link.b][link.a] = link
    same = components((link.a, link.b) for link in family.evidence if link.verdict == "identical")
    hoods = ((name, _hood(name, links, same, load)) for name in family.members)
    found = {}
    for name, hood in hoods:
        if hood is None or len(hood.figures.energies) < _FEWEST_LAYERS:
            continue
        merge = _straight(name, hood) or _of_unrelated(name, hood)
        if merge is not None:
            found[name] = merge
    yield from (_to_the_ends(merge, found) for merge in found.values())


def _to_the_ends(merge: Merge, found: Mapping[str, Merge]) -> Merge:
    """Several merges of one pair lie on one line. Where one parent is itself such a merge of the other parent and a
    third, the ends of the line are meant, though the far one may be too far to be linked."""
    for own, other in (merge.parents, merge.parents[::-1]):
        between = found.get(own.name)
        if not (merge.exact and between is not None and between.exact) or other.name not in {
            parent.name for parent in between.parents
        }:
            continue
        far = next(parent for parent in between.parents if parent.name != other.name)
        if far.name == merge.member or far.name in found:
            continue
        weight = own.weight * far.weight
        error = math.hypot(own.weight_error * far.weight, own.weight * far.weight_error)
        ends = (Parent(far.name, None, weight, error), Parent(other.name, other.partial_z, 1 - weight, error))
        parents = tuple(sorted(ends, key=lambda parent: (-parent.weight, parent.name)))
        how = f"by way of {own.name}, which lies on the same line"
        return Merge(merge.member, parents, between.kind, f"{how}: {merge.reason}", exact=True)
    return merge


def _hood(name: str, links: Mapping[str, Mapping[str, Link]], same: Mapping[str, str], load: Load) -> _Hood | None:
    middle = load(name)
    key = None if middle is None else shape_key(middle)
    if middle is None or key is None:
        return None
    chosen: dict[str, Prepared] = {}
    twins: dict[str, Sequence[str]] = {}
    best: str | None = None
    near = apart = 0
    for alike in _classes(name, links[name], same):
        alone = best is not None and alike[0] not in links[best]
        if near >= NEAREST and not (alone and apart < NEAREST_APART):
            continue
        fitting = {other: side for other in alike if (side := load(other)) is not None and shape_key(side) == key}
        if not fitting:
            continue
        other = min(fitting)
        chosen[other] = fitting[other]
        twins[other] = [own for own in alike if own != other]
        best = best or other
        apart += alone
        near += not alone
    if len(chosen) < 2:
        return None
    names, sides = tuple(chosen), tuple(chosen.values())
    pairs = {(i, j): links[a][b] for i, a in enumerate(names) for j, b in enumerate(names) if b in links[a]}
    return _Hood(middle, names, sides, frozenset(pairs), twins, products(middle, sides))


def _stored(side: Prepared) -> set[str]:
    return {matrix.dtype for matrix in side.fingerprint.matrices}


def _strength(link: Link) -> float:
    return -math.inf if link.log10_p is None else link.log10_p


def _classes(name: str, links: Mapping[str, Link], same: Mapping[str, str]) -> list[list[str]]:
    """The neighbours of a member, best linked first, those together that are identical; not those identical to it."""
    classes: dict[str, list[str]] = {}
    for other in sorted(links, key=lambda other: (_strength(links[other]), other)):
        classes.setdefault(same.get(other, other), []).append(other)
    classes.pop(same.get(name, name), None)
    return list(classes.values())


def _straight(name: str, hood: _Hood) -> Merge | None:
    """M between two parents, in the means to the last bit that storage keeps."""
    last = len(hood.names)
    means, energies = (about(own, last).sum(axis=0) for own in (hood.figures.means, hood.figures.energies))
    upper = np.triu_indices(last, 1)
    i, j = upper
    straight = _correlation(means)[upper]
    share = _share(means)[upper]
    left = np.sqrt(np.maximum(_left(means)[upper], 0) / hood.figures.matrices)
    apart = np.array([hood.apart(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True)])
    fitting = (
        (straight <= _MEANS_ANTIPARALLEL)
        & (left <= _ROUNDING_LIMIT)
        & (share > _SHARES[0])
        & (share < _SHARES[1])
        & (apart | (_correlation(energies)[upper] <= _ENERGIES_ANTIPARALLEL))
    )
    limit = _LOG10_ALPHA - math.log10(max(len(i), 1))
    bounds = np.array([log10_antiparallel(r, hood.figures.matrices) for r in straight.tolist()])
    found = np.flatnonzero(fitting & (bounds <= limit)).tolist()
    if not found:
        return None
    # Merges of one pair lie on one line: its ends are meant. Casts of one parent are as far; the one stored as M is.
    least = min(left[at] for at in found)
    squares = np.diag(means)
    width = np.log(np.maximum(squares[i] + squares[j] - 2 * means[upper], 1e-300))
    recast = np.array([_stored(side) != _stored(hood.middle) for side in hood.sides])
    at = min(
        (at for at in found if left[at] <= 1.5 * least + 0.2),
        key=lambda at: (-round(float(width[at]), 1), int(recast[i[at]]) + int(recast[j[at]]), float(left[at])),
    )
    a, b = int(i[at]), int(j[at])
    weight, error = _best_share(hood.figures, a, b, bool(apart[at]))
    order = triangle(hood.middle, hood.sides[a], hood.sides[b])
    parents = _parents(hood, (a, b), (weight, 1 - weight), (error, error), order)
    reason = (
        f"the means of all {hood.figures.matrices} matrices lie between those of the two, up to the rounding of "
        f"storage (correlation of the differences {straight[at]:.3f}, {left[at]:.1f} deviations left)"
        f"{hood.same_weights(a, b)}"
    )
    return Merge(name, parents, "of unrelated" if apart[at] else "linear", f"{reason}; {NOT_TOLD_APART}", exact=True)


def _of_unrelated(name: str, hood: _Hood) -> Merge | None:
    """Parents that are not linked and agree less than what passes through M."""
    best: tuple[float, int, int, Triangle] | None = None
    for i in range(len(hood.names)):
        for j in range(i + 1, len(hood.names)):
            if not hood.apart(i, j):
                continue
            order = triangle(hood.middle, hood.sides[i], hood.sides[j])
            if order is None or order.z > LIMIT or not order.unexplained:
                continue
            strength = min(order.first, order.second)
            if best is None or strength > best[0]:
                best = (strength, i, j, order)
    if best is None:
        return None
    _, i, j, order = best
    fit = _regression(hood.figures.means, i, j)
    if fit is None or min(fit.coefficients) <= 0:
        return None
    parents = _parents(hood, (i, j), fit.coefficients, fit.errors, order)
    reason = (
        f"its order of units agrees with both (r {order.first:.2f} and {order.second:.2f}), theirs with each other "
        f"less than what passes through it (r {order.between:.2f}, z {order.z:.1f}), which no line of descent does; "
        f"parents or relatives of them; a candidate, not a verdict{hood.same_weights(i, j)}"
    )
    return Merge(name, parents, "of unrelated", reason)


@dataclass(frozen=True)
class _Fit:
    """Energies of M explained by those of two members: coefficients with errors, and the share explained."""

    coefficients: tuple[float, float]
    errors: tuple[float, float]
    explained: float


def _regression(layers: FLOAT64, i: int, j: int) -> _Fit | None:
    total = layers.sum(axis=0)
    whole = _solve(total, i, j)
    if whole is None:
        return None
    left_out = [_solve(total - own, i, j) for own in layers]
    drops = np.array([one[:2] for one in left_out if one is not None])
    if len(drops) < len(layers):
        return None
    errors = _jackknife(drops)
    return _Fit((whole[0], whole[1]), (float(errors[0]), float(errors[1])), whole[2])


def _solve(total: FLOAT64, i: int, j: int) -> tuple[float, float, float] | None:
    own = total[np.ix_([i, j], [i, j])]
    target = total[[i, j], -1]
    square = float(total[-1, -1])
    if square <= 0 or float(np.linalg.det(own)) <= 1e-6 * float(own[0, 0] * own[1, 1]):
        return None
    coefficients = np.linalg.solve(own, target)
    return float(coefficients[0]), float(coefficients[1]), float(coefficients @ target) / square


def _parents(
    hood: _Hood,
    pair: tuple[int, int],
    weights: tuple[float, float],
    errors: tuple[float, float],
    order: Triangle | None,
) -> tuple[Parent, ...]:
    partial = (None, None) if order is None else order.partial_z()
    found = [
        Parent(hood.names[at], z, weight, error)
        for at, z, weight, error in zip(pair, partial, weights, errors, strict=True)
    ]
    return tuple(sorted(found, key=lambda parent: (-parent.weight, parent.name)))


def _best_share(figures: Products, i: int, j: int, apart: bool) -> tuple[float, float]:
    """The share of the first parent and its error: of means or energies, whichever says it more sharply. Energies of
    unrelated parents hold a cross term of unknown size, so only means speak there."""
    found = []
    last = figures.means.shape[-1] - 1
    for kind in (figures.means,) if apart else (figures.means, figures.energies):
        layers = about(kind, last)
        total = layers.sum(axis=0)
        drops = np.array([_share_of(total - own, i, j) for own in layers])
        found.append((float(_jackknife(drops[:, None])[0]), _share_of(total, i, j)))
    error, share = min(found)
    return share, error


def _share_of(total: FLOAT64, i: int, j: int) -> float:
    """The share of member i: a = <M - Pj, Pi - Pj> / |Pi - Pj|^2, with products about M."""
    length = float(total[i, i] + total[j, j] - 2 * total[i, j])
    return float(total[j, j] - total[i, j]) / length if length > 0 else math.nan


def _jackknife(drops: FLOAT64) -> FLOAT64:
    """Standard errors of the columns of estimates [layers, figures] that leave out one layer each."""
    number = len(drops)
    return np.asarray(np.sqrt((number - 1) / number * ((drops - drops.mean(axis=0)) ** 2).sum(axis=0)))


def _correlation(total: FLOAT64) -> FLOAT64:
    norms = np.sqrt(np.maximum(np.diag(total), 1e-300))
    return np.asarray(total / np.outer(norms, norms))


def _share(total: FLOAT64) -> FLOAT64:
    squares = np.diag(total)
    length = squares[:, None] + squares[None, :] - 2 * total
    return np.asarray((squares[None, :] - total) / np.where(length > 0, length, math.inf))


def _left(total: FLOAT64) -> FLOAT64:
    """What a point of the straight way leaves of M: the squared distance of M from the line through i and j."""
    squares = np.diag(total)
    length = squares[:, None] + squares[None, :] - 2 * total
    along = (squares[None, :] - total) ** 2 / np.where(length > 0, length, math.inf)
    return np.asarray(squares[None, :] - along)


def log10_antiparallel(correlation: float, dimensions: int) -> float:
    """log10 of an upper bound of P(r <= correlation) for two independent directions of which one is uniform on the
    sphere: the cap beyond an angle whose cosine is |r| has a share of at most (1 - r^2)^((n-1)/2) / 2 (n >= 2)."""
    if correlation >= 0 or dimensions < 2:
        return 0.0
    inside = max(1 - correlation**2, 1e-300)
    return (dimensions - 1) / 2 * math.log10(inside) - math.log10(2)
