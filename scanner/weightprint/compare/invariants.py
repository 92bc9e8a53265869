"""Curves that a change of units on purpose leaves as they are, and the flag that is raised when two of them agree.

The order code is defeated by permuting units, which changes nothing that a network computes. Such changes keep some of
these curves over the layers, logarithms about their mean, to the rounding of storage:

* permuting units or heads, or dimensions of the residual stream: all of them;
* W_Q c and W_K / c, W_V c and W_O / c: ``qk`` = log sigma_Q + log sigma_K, ``vo`` likewise;
* a factor for every head or unit of V, taken back in O: ``units``, the mean over the units of the logarithm of the
  energy of a row of V times that of the columns of O that read it;
* W_V A and W_O / A with any invertible A inside a head: ``q``, ``k``, ``qk``;
* a rotation of the residual stream after the gains of the norms were multiplied into what they feed: ``o``;
* and, where feed-forward blocks were read, of these: ``gate``, ``up`` and ``down``, which no change of attention's
  units touches; ``updown`` = log sigma_up + log sigma_down, whatever factor one gains and the other loses; ``down``,
  whatever is done to the residual stream and to values at once.

So each curve counts by itself. Of a pair the *ratio* is the root mean square of the difference of the two centred
curves over the geometric mean of their own root mean squares, for the curve where it is smallest; the *residual* is
the difference itself. A correlation would not tell them: 1 - r is half the square of the ratio, and unrelated networks
of one recipe have r of 0.98 and more over six layers, a ratio of 0.2; a copy has less than 0.003.

The flag is a screen and no evidence: it rests on how ratios of unrelated pairs are distributed, which no theorem
gives. Assumed is that P(ratio <= r) falls at least as r^k below a point where it is known, with k half the free
dimensions of a curve (layers - 1, halved since neighbouring layers are alike), 4 at most.

* With a background, 20 pairs or more of the report that no evidence links: the median of their ratios is that point,
  which copies among them hardly move. The flag is for at most one false flag in 1,000 pairs and 0.2 in a report.
* Without one: at most one unrelated pair in 20 is taken to have a ratio below 0.2, for each of the curves; the flag is
  for at most one false flag in 1,000 pairs, and the ratio must be 0.01 or less.

In either case ratio and residual must be small themselves, and stacks equally deep. Given up: values mixed while keys
are rescaled head by head, or while the stream is rotated and gains are folded, keep no curve of attention that a
fingerprint holds; nor does training on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import BOOL, FLOAT64, INT64
from weightprint.compare.packed import ShapeClass
from weightprint.compare.prepared import Prepared
from weightprint.compare.screen import CurvePositions, centred, choose
from weightprint.compare.stacks import UNITS
from weightprint.data import Agreement

CURVES: Mapping[str, tuple[str, ...]] = {
    "qk": ("q", "k"),
    "vo": ("v", "o"),
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "o": ("o",),
    UNITS: (UNITS,),
    "gate": ("gate",),
    "up": ("up",),
    "down": ("down",),
    "updown": ("up", "down"),
}
"""Invariants, and the roles whose logarithms they add up."""

FEWEST_POINTS = 4
MOST_DIMENSIONS = 4.0

FALSE_FLAGS_A_PAIR = 1e-3
FALSE_FLAGS_A_REPORT = 0.2
UNRELATED_RATIO, UNRELATED_SHARE = 0.2, 0.05
"""Without a background: at most this share of unrelated pairs is taken to have a smaller ratio than this."""

LARGEST_RATIO, LARGEST_RESIDUAL = 0.03, 3e-3
LARGEST_RATIO_ALONE, LARGEST_RESIDUAL_ALONE = 0.01, 1e-3

ROUNDING = 5e-4
"""Residual below which a sentence gives no figure."""

FLAT = 1e-6
"""Root mean square below which a curve is the same in every layer."""

LAUNDERING = "possible laundering:"
ADVICE = "weightprint compare A B --confirm reads the weights of the two and tests it"

BACKGROUND_ENOUGH = 20
"""Other pairs that no evidence links, from which on they are a background."""

_PAIRS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Agreements:
    """Of pairs: the smallest ratio, its residual and the points of its curve; ``curves`` has the bit of each curve that
    agrees (LARGEST_RATIO, LARGEST_RESIDUAL). nan and 0 where no curve could be held against the other's."""

    ratio: FLOAT64
    residual: FLOAT64
    points: npt.NDArray[np.int16]
    curves: npt.NDArray[np.uint16]

    @classmethod
    def empty(cls, number: int) -> Agreements:
        """Of so many pairs, nothing known yet."""
        nothing = np.full(number, math.nan)
        return cls(nothing, nothing.copy(), np.zeros(number, np.int16), np.zeros(number, np.uint16))

    def put(self, places: INT64, others: Agreements) -> None:
        """Fill in what is known of the pairs at ``places``."""
        for own, other in zip(vars(self).values(), vars(others).values(), strict=True):
            own[places] = other

    def at(self, number: int) -> Agreement | None:
        """One pair, None if nothing could be held against each other."""
        ratio = float(self.ratio[number])
        if math.isnan(ratio):
            return None
        bits = int(self.curves[number])
        names = tuple(name for place, name in enumerate(CURVES) if bits >> place & 1)
        return Agreement(names, float(self.residual[number]), ratio, int(self.points[number]))


def agreements_of(agreements: Sequence[Agreement | None]) -> Agreements:
    """The columns of single ones."""
    found = Agreements.empty(len(agreements))
    for number, own in enumerate(agreements):
        if own is not None:
            found.ratio[number], found.residual[number], found.points[number] = own.ratio, own.residual, own.points
            found.curves[number] = sum(1 << place for place, name in enumerate(CURVES) if name in own.curves)
    return found


def agreement_of_pair(a: Prepared, b: Prepared) -> Agreement | None:
    """How well the curves of two fingerprints agree, where they do best."""
    sides = []
    for side in (a, b):
        logs = {key: _logs(curve.values[None]) for key, curve in side.curves.items()}
        positions = {key: curve.positions for key, curve in side.curves.items()}
        sides.append(_Side([(stack.name, stack.depth) for stack in side.stacks], positions, logs))
    only = np.zeros(1, np.int64)
    return _agreements(sides[0], sides[1], only, only).at(0)


def agreements_of_classes(a: ShapeClass, b: ShapeClass, rows_a: INT64, rows_b: INT64) -> Agreements:
    """The same of many pairs, to the bit: rows int64 [pairs] of two classes."""
    sides = []
    for side in (a, b):
        positions = side.shape.curve_positions()
        logs = {}
        for stack, role in positions:
            start = side.shape.curve_start(stack, role)
            points = np.arange(start, start + len(positions[stack, role]))
            logs[stack, role] = _logs(np.take(side.points, points, axis=1))
        sides.append(_Side(list(side.shape.stacks), positions, logs))
    return _agreements(sides[0], sides[1], rows_a, rows_b)


@dataclass(frozen=True)
class _Side:
    """Stacks as (name, depth), largest first; positions and logarithms [members, points] of the curves."""

    stacks: list[tuple[str, int]]
    positions: CurvePositions
    logs: dict[tuple[str, str], FLOAT64]


def _logs(values: FLOAT64) -> FLOAT64:
    # A matrix of zeros has no logarithm; its curve is left out by the nan that comes of it.
    with np.errstate(divide="ignore"):
        return np.log(np.ascontiguousarray(values))


def _agreements(a: _Side, b: _Side, rows_a: INT64, rows_b: INT64) -> Agreements:
    found = Agreements.empty(len(rows_a))
    stacks = choose([name for name, _ in a.stacks], [name for name, _ in b.stacks])
    if stacks is None or dict(a.stacks)[stacks[0]] != dict(b.stacks)[stacks[1]]:
        return found
    for place, roles in enumerate(CURVES.values()):
        positions = [
            [set(side.positions.get((stack, role), ())) for role in roles]
            for side, stack in zip((a, b), stacks, strict=True)
        ]
        common = sorted(set.intersection(*positions[0], *positions[1]))
        if len(common) < FEWEST_POINTS:
            continue
        first, second = (_curve(side, stack, roles, common) for side, stack in zip((a, b), stacks, strict=True))
        for start in range(0, len(rows_a), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            ratio, residual = _distances(first, second, rows_a[some], rows_b[some])
            agree = (ratio <= LARGEST_RATIO) & (residual <= LARGEST_RESIDUAL)
            found.curves[some] |= (agree << place).astype(np.uint16)
            better = ~(ratio >= found.ratio[some]) & ~np.isnan(ratio)
            found.ratio[some] = np.where(better, ratio, found.ratio[some])
            found.residual[some] = np.where(better, residual, found.residual[some])
            found.points[some] = np.where(better, len(common), found.points[some])
    return found


def _curve(side: _Side, stack: str, roles: Sequence[str], common: Sequence[int]) -> FLOAT64:
    """One curve of every member, float64 [members, points], about its mean."""
    total: FLOAT64 = np.zeros(())
    for role in roles:
        places = [side.positions[stack, role].index(position) for position in common]
        # take gives rows that lie together in memory, which sums depend on.
        total = total + np.take(side.logs[stack, role], places, axis=1)
    with np.errstate(invalid="ignore"):
        return centred(total)


def _distances(first: FLOAT64, second: FLOAT64, rows_a: INT64, rows_b: INT64) -> tuple[FLOAT64, FLOAT64]:
    """Ratio and residual of pairs of rows; nan where a curve is flat or unknown."""
    # A layer of zeros makes its curve, and what comes of it, no number.
    with np.errstate(invalid="ignore"):
        spread_a, spread_b = (np.sqrt((curve * curve).sum(-1) / curve.shape[-1]) for curve in (first, second))
        apart = first[rows_a] - second[rows_b]
        residual = np.sqrt((apart * apart).sum(-1) / apart.shape[-1])
        spread = np.sqrt(spread_a[rows_a] * spread_b[rows_b])
    known = np.minimum(spread_a[rows_a], spread_b[rows_b]) > FLAT
    return np.where(known, residual / np.where(known, spread, 1.0), math.nan), residual


def flagged(agreements: Agreements, outside: BOOL) -> tuple[BOOL, int]:
    """Which pairs are flagged, and how many pairs the background has; ``outside`` are the pairs of the report that no
    evidence links. A pair that evidence links keeps its word whatever is said here."""
    known = outside & ~np.isnan(agreements.ratio)
    number = int(known.sum())
    if number > BACKGROUND_ENOUGH:  # one of them is the pair's own
        median = float(np.median(agreements.ratio[known]))
        share = 2 * min(FALSE_FLAGS_A_PAIR, FALSE_FLAGS_A_REPORT / number)
        largest = np.minimum(median * share ** (1 / _power(agreements.points)), LARGEST_RATIO)
        residual = LARGEST_RESIDUAL
    else:
        share = FALSE_FLAGS_A_PAIR / len(CURVES) / UNRELATED_SHARE
        largest = np.minimum(UNRELATED_RATIO * share ** (1 / _power(agreements.points)), LARGEST_RATIO_ALONE)
        residual = LARGEST_RESIDUAL_ALONE
    return (agreements.ratio <= largest) & (agreements.residual <= residual), number


def _power(points: npt.NDArray[np.int16]) -> FLOAT64:
    """k of the module docstring."""
    return np.clip((points - 1) / 2, 0.5, MOST_DIMENSIONS)


def sentence(agreement: Agreement, background: int) -> str:
    """Why a pair is flagged, and what to do."""
    held = (
        f"of {background} pairs of the report that no evidence links"
        if background > BACKGROUND_ENOUGH
        else "taken from other models, since the report has no background"
    )
    how = (
        f"the closest are equal to the rounding of storage (within {ROUNDING:g})"
        if agreement.residual < ROUNDING
        else f"the closest to {agreement.residual:.2g}, {agreement.ratio:.2g} of their own spread"
    )
    curves = f"the curves of {', '.join(agreement.curves)} over {agreement.points} layers agree"
    unexplained = f"no test of the order of units explains it (limit {held})"
    return f"{LAUNDERING} {curves}, {how}, and {unexplained}; this is a screen and no evidence: {ADVICE}"
