"""The screen: the seed score of arXiv 2507.03014 v1 (v2 is withdrawn), a figure for looking at and no evidence.

Per role the standard deviations of the whole matrices over the layers are standardised; the shorter curve is linearly
interpolated onto the longer; r is Pearson's; the score is the mean of r over q, k, v, o. Which stacks: the largest
whose names correspond, else the largest of each side. Nothing is scored that was not read: a curve with holes meets
the other only at layers that both have, and only if both stacks are equally deep.
"""

from __future__ import annotations

import math

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.compare.prepared import Prepared
from weightprint.compare.stacks import CURVE_ROLES, Curve, Stack, correspond
from weightprint.data import Screen

FEWEST_LAYERS = 3


def screen_pair(a: Prepared, b: Prepared) -> tuple[Screen, tuple[str, ...]]:
    """Seed score of two checkpoints, and a sentence for every role that could not be scored."""
    chosen = _choose(a.stacks, b.stacks)
    if chosen is None:
        return Screen(None), ()
    stack_a, stack_b = chosen
    scores: dict[str, float | None] = {}
    gaps: dict[str, list[str]] = {}
    for role in CURVE_ROLES:
        curve_a, curve_b = a.curves.get((stack_a.name, role)), b.curves.get((stack_b.name, role))
        score = _role_score(curve_a, curve_b, stack_a.depth, stack_b.depth)
        scores[role] = score if isinstance(score, float) else None
        if isinstance(score, str):
            gaps.setdefault(score, []).append(role)
    known = [score for score in scores.values() if score is not None]
    mean = float(np.mean(known)) if known else None
    reasons = tuple(f"the screen leaves out {', '.join(roles)}: {why}" for why, roles in gaps.items())
    return Screen(mean, q=scores["q"], k=scores["k"], v=scores["v"], o=scores["o"]), reasons


def _choose(a: tuple[Stack, ...], b: tuple[Stack, ...]) -> tuple[Stack, Stack] | None:
    if not a or not b:
        return None
    # Both come largest first; of several that correspond to one, its namesake is meant.
    fitting = ((x, y) for x in a for y in sorted(b, key=lambda y: y.name != x.name) if correspond(x.name, y.name))
    return next(fitting, (a[0], b[0]))


def _role_score(a: Curve | None, b: Curve | None, depth_a: int, depth_b: int) -> float | str:
    """Pearson's r of two curves, or why there is none."""
    if a is None or b is None:
        return "not on both sides"
    first, second = a.values, b.values
    if len(first) < depth_a or len(second) < depth_b:
        if depth_a != depth_b:
            return "layers are missing and the depths differ"
        common = sorted(set(a.positions) & set(b.positions))
        first = first[[a.positions.index(position) for position in common]]
        second = second[[b.positions.index(position) for position in common]]
    if min(len(first), len(second)) < FEWEST_LAYERS:
        return f"fewer than {FEWEST_LAYERS} layers"
    if _constant(first) or _constant(second):
        return "the same standard deviation in every layer"
    length = max(len(first), len(second))
    return pearson(stretch(first, length), stretch(second, length))


def stretch(curve: FLOAT64, length: int) -> FLOAT64:
    """``curve`` as z-scores, linearly interpolated onto ``length`` points over the same extent."""
    centred = curve - curve.sum() / len(curve)
    scores = centred / math.sqrt(centred @ centred / len(curve))
    if len(curve) == length:
        return np.asarray(scores)
    points = np.linspace(0, len(curve) - 1, length)
    return np.asarray(np.interp(points, np.arange(len(curve)), scores), np.float64)


def pearson(a: FLOAT64, b: FLOAT64) -> float:
    """Pearson's correlation, kept inside [-1, 1]."""
    a, b = a - a.sum() / len(a), b - b.sum() / len(b)
    return max(-1.0, min(1.0, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))))


def _constant(curve: FLOAT64) -> bool:
    return bool(np.ptp(curve) <= 1e-12 * np.abs(curve).max())
