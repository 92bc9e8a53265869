"""Does a checkpoint take its order of units from two others at once? The order codes of three checkpoints.

Descent without merging is a tree. Given the codes of M, those of two others are then independent (M lies between them)
or agree more than that (their paths part before M): the correlation r12 of the two is at least what passes through M.
A merge is the one thing that puts it below: each parent explains what the other leaves of M.

What passes through M is not assumed to be r1 * r2. Blocks are sorted by M's order; f1 and f2, the mean codes of the
others at each of M's ranks, are estimated from all blocks, and the residuals of one block, (c1 - f1) . (c2 - f2), have
mean zero under a chain, above zero under any other tree. Their mean over the blocks divided by its own standard error
is asymptotically standard normal (the generalised covariance measure: Shah and Peters, Annals of Statistics 2020).
Blocks of the two channels of a head are not independent of each other; the standard errors of the groups are therefore
added, as if they were the same. z <= -8 is asked for: one-sided p < 1e-15 in the limit, far from every tree simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import BOOL, FLOAT64, largest
from weightprint.compare.prepared import Prepared, UnitGroup

LIMIT = -8.0
FEWEST_BLOCKS = 24


@dataclass(frozen=True)
class Triangle:
    """Rank correlations of M with the two and of the two, over ``degrees`` = blocks * (b - 1); ``z`` of the residual
    covariance of the two given M, far below zero for a merge."""

    first: float
    second: float
    between: float
    z: float
    degrees: int

    @property
    def unexplained(self) -> bool:
        """Whether the two share, three standard errors added, less than half of what passes through M: training that
        drifts on one way lets them share less than all of it, but not so little."""
        return self.between + 3 / math.sqrt(self.degrees) < self.first * self.second / 2

    def partial_z(self) -> tuple[float, float]:
        """z of M with the first given the second, and the reverse."""
        return (
            _partial(self.first, self.second, self.between) * math.sqrt(self.degrees),
            _partial(self.second, self.first, self.between) * math.sqrt(self.degrees),
        )


def triangle(middle: Prepared, first: Prepared, second: Prepared) -> Triangle | None:
    """The order codes of three checkpoints of one shape, layer l with layer l; None where too little is left."""
    sums = np.zeros(3)
    weight = degrees = 0
    total = error = 0.0
    for groups in zip(middle.groups, first.groups, second.groups, strict=True):
        cut = _blocks(groups)
        if cut is None:
            continue
        m, a, b = cut
        block = m.shape[1]
        order = np.argsort(m, axis=1)
        left, right = (np.take_along_axis(codes, order, axis=1) for codes in (a, b))
        residual = ((left - left.mean(axis=0)) * (right - right.mean(axis=0))).sum(axis=1) / largest(block)
        total += float(residual.sum())
        error += float(residual.std()) * math.sqrt(len(residual))
        sums += [float((x * y).sum()) / largest(block) for x, y in ((m, a), (m, b), (a, b))]
        weight += len(m)
        degrees += len(m) * (block - 1)
    if weight < FEWEST_BLOCKS or error == 0:
        return None
    r_first, r_second, r_between = (sums / weight).tolist()
    return Triangle(r_first, r_second, r_between, total / error, degrees)


def _blocks(groups: tuple[UnitGroup, UnitGroup, UnitGroup]) -> tuple[FLOAT64, FLOAT64, FLOAT64] | None:
    """The blocks that are valid in all three [blocks, block]; copied layers count once, whoever holds the copies."""
    if any(group.codes is None or group.control.failed for group in groups):
        return None
    codes = [group.codes for group in groups if group.codes is not None]
    if len({own.block for own in codes}) != 1:
        return None
    rows = np.ones(len(groups[0].layers), bool)
    for group in groups:
        for copies in group.control.copies:
            rows[list(copies[1:])] = False
    valid: BOOL = codes[0].valid & codes[1].valid & codes[2].valid & rows[:, None]
    if np.count_nonzero(valid) < 2:
        return None
    block = codes[0].block
    cut = [own.values.reshape(*own.valid.shape, block)[valid].astype(np.float64) for own in codes]
    return cut[0], cut[1], cut[2]


def _partial(own: float, other: float, between: float) -> float:
    left = (1 - other**2) * (1 - between**2)
    return (own - other * between) / math.sqrt(left) if left > 1e-12 else 0.0
