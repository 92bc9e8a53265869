"""The screen: the seed score of arXiv 2507.03014 v1 (v2 is withdrawn), a figure for looking at and no evidence.

Per role the standard deviations of the whole matrices over the layers are standardised; the shorter curve is linearly
interpolated onto the longer; r is Pearson's; the score is the mean of r over q, k, v, o. Which stacks: the largest
whose names correspond, else the largest of each side. Nothing is scored that was not read: a curve with holes meets
the other only at layers that both have, and only if both stacks are equally deep.

Curves are arrays [..., layers], so that one pair and many are the same arithmetic, to the bit: sums run along the last
axis, one row after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import BOOL, FLOAT64
from weightprint.compare.prepared import Prepared
from weightprint.compare.stacks import CURVE_ROLES, correspond
from weightprint.data import Screen

FEWEST_LAYERS = 3


@dataclass(frozen=True)
class RolePlan:
    """How the curves of one role meet: which of their points, or ``gap``, why they do not."""

    role: str
    gap: str | None
    points_a: tuple[int, ...] = ()
    points_b: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Points of the longer curve, onto which the shorter one is interpolated."""
        return max(len(self.points_a), len(self.points_b))


CurvePositions = dict[tuple[str, str], tuple[int, ...]]
"""The positions in its stack at which the curve of a (stack, role) has a point."""

CONSTANT = "the same standard deviation in every layer"


def screen_pair(a: Prepared, b: Prepared) -> tuple[Screen, tuple[str, ...]]:
    """Seed score of two checkpoints, and a sentence for every role that could not be scored."""
    stacks = choose([stack.name for stack in a.stacks], [stack.name for stack in b.stacks])
    if stacks is None:
        return Screen(None), ()
    depths = tuple(next(s.depth for s in side.stacks if s.name == n) for side, n in zip((a, b), stacks, strict=True))
    positions = [{key: curve.positions for key, curve in side.curves.items()} for side in (a, b)]
    scores: dict[str, float | None] = dict.fromkeys(CURVE_ROLES)
    gaps: dict[str, str] = {}
    for plan in role_plans(stacks, (depths[0], depths[1]), (positions[0], positions[1])):
        if plan.gap is not None:
            gaps[plan.role] = plan.gap
            continue
        first = a.curves[stacks[0], plan.role].values[list(plan.points_a)]
        second = b.curves[stacks[1], plan.role].values[list(plan.points_b)]
        if constant(first) or constant(second):
            gaps[plan.role] = CONSTANT
            continue
        scores[plan.role] = float(pearson(stretch(first, plan.length), stretch(second, plan.length)))
    known = [score for score in scores.values() if score is not None]
    mean = float(np.mean(known)) if known else None
    return Screen(mean, q=scores["q"], k=scores["k"], v=scores["v"], o=scores["o"]), gap_reasons(gaps)


def choose(a: Sequence[str], b: Sequence[str]) -> tuple[str, str] | None:
    """Which stack meets which, of names that come largest first; None where a side has none."""
    if not a or not b:
        return None
    # Of several that correspond to one, its namesake is meant.
    fitting = ((x, y) for x in a for y in sorted(b, key=lambda y: y != x) if correspond(x, y))
    return next(fitting, (a[0], b[0]))


def role_plans(
    stacks: tuple[str, str], depths: tuple[int, int], positions: tuple[CurvePositions, CurvePositions]
) -> list[RolePlan]:
    """How every role of two stacks meets; no standard deviation is looked at."""
    return [
        _role_plan(role, depths, positions[0].get((stacks[0], role)), positions[1].get((stacks[1], role)))
        for role in CURVE_ROLES
    ]


def gap_reasons(gaps: dict[str, str]) -> tuple[str, ...]:
    """A sentence for every reason why roles could not be scored."""
    roles: dict[str, list[str]] = {}
    for role, why in gaps.items():
        roles.setdefault(why, []).append(role)
    return tuple(f"the screen leaves out {', '.join(own)}: {why}" for why, own in roles.items())


def _role_plan(role: str, depths: tuple[int, int], a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> RolePlan:
    if a is None or b is None:
        return RolePlan(role, "not on both sides")
    first, second = tuple(range(len(a))), tuple(range(len(b)))
    if len(first) < depths[0] or len(second) < depths[1]:
        if depths[0] != depths[1]:
            return RolePlan(role, "layers are missing and the depths differ")
        common = sorted(set(a) & set(b))
        first, second = tuple(map(a.index, common)), tuple(map(b.index, common))
    if min(len(first), len(second)) < FEWEST_LAYERS:
        return RolePlan(role, f"fewer than {FEWEST_LAYERS} layers")
    return RolePlan(role, None, first, second)


def stretch(curve: FLOAT64, length: int) -> FLOAT64:
    """Curves [..., layers] as z-scores, linearly interpolated onto ``length`` points over the same extent."""
    own = curve.shape[-1]
    centred = curve - curve.sum(-1, keepdims=True) / own
    scores = centred / np.sqrt((centred * centred).sum(-1, keepdims=True) / own)
    if own == length:
        return np.asarray(scores)
    points = np.linspace(0, own - 1, length)
    left = np.minimum(points.astype(np.int64), own - 2)
    # take gives rows that lie together in memory, which sums depend on.
    before, after = (np.take(scores, at, axis=-1) for at in (left, left + 1))
    return np.asarray(before + (after - before) * (points - left))


def pearson(a: FLOAT64, b: FLOAT64) -> FLOAT64:
    """Pearson's correlation of curves [..., points], kept inside [-1, 1]."""
    a, b = centred(a), centred(b)
    return cosine((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1))


def centred(curve: FLOAT64) -> FLOAT64:
    """Curves [..., points] about their means."""
    return np.asarray(curve - curve.sum(-1, keepdims=True) / curve.shape[-1])


def cosine(inner: FLOAT64, square_a: FLOAT64, square_b: FLOAT64) -> FLOAT64:
    """Inner products of centred curves over the roots of their squares, kept inside [-1, 1]."""
    return np.asarray(np.clip(inner / np.sqrt(square_a * square_b), -1.0, 1.0))


def constant(curve: FLOAT64) -> BOOL:
    """Whether curves [..., layers] are the same in every layer, up to rounding."""
    return np.asarray(np.ptp(curve, axis=-1) <= 1e-12 * np.abs(curve).max(axis=-1))
