"""Parts of a layer against parts of a layer: attention heads, and experts of a feed-forward block.

A head that was pruned away, moved to another place or given to another group leaves the order of units inside it as it
was. So every part of ``width`` consecutive units of one side is held against every part of the other; what a pair of
parts says has only width / block blocks (16 for a head of 128: z 10.6 at most), and pays for all pairs of parts.

Two tests are made of that. The *best* pair of parts pays for the number of pairs: one head that two checkpoints share
is enough. In the *matched* test every part of one side takes the part of the other with the largest T, and T is summed.
Whatever function from parts to parts is fixed beforehand, the sum is one of independent block products: a part of the
side that chooses is uniform under the null hypothesis whatever it meets, and meets once. So the choice is paid for with
the number of functions, (parts met) ^ (parts that choose), and may be made in any way. The side with fewer parts
chooses; if both have as many, each does, which is paid for too. Parts that are copies of others do not choose. What is
paid puts p so far into the tail that Chernoff's bound serves as well as the exact value, and costs nothing.

Which parts meet follows from the shapes. Where layers pair off by position and have as many units, parts meet inside
layers of equal position, which costs little beside the layer pairs that are tested anyway. Else, where nothing says
which layer is which or a layer has lost parts, all parts of all layers meet. One part against one part is the test of
layer pairs, and is not made again.

Layers are gone through one by one: a model of 61 layers of 128 heads has 61 million pairs of heads with its like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import INT64, Codes, products, standardised
from weightprint.compare.exact import log10_tail_bounds
from weightprint.compare.meeting import common_block, part_width, same_positions
from weightprint.compare.prepared import GroupShape, UnitGroup
from weightprint.compare.selfcontrol import COPY_LOG10_P, significant

HeadPair = tuple[int, int, int, int, float]
"""(layer of a, part of a, layer of b, part of b, z)"""

Rows = tuple[tuple[int, tuple[int, ...]], ...]
"""Rows of one side, each with the rows of the other whose parts meet its own."""


@dataclass(frozen=True)
class Choice:
    """Who chooses in the matched test: so many parts of ``a`` and of ``b``, 0 where that side does not; and from how
    many parts of the other side each may choose."""

    of_a: int
    of_b: int
    from_b: int
    from_a: int

    def log10_functions(self, by_a: bool, choosing: int) -> float:
        """log10 of what ``choosing`` parts of a side pay."""
        twice = math.log10(2) if self.of_a and self.of_b else 0.0
        return choosing * math.log10(self.from_b if by_a else self.from_a) + twice


@dataclass(frozen=True)
class Matched:
    """The matched test of two groups: T, valid blocks, log10 of the number of functions."""

    statistic: int
    blocks: int
    log10_functions: float


@dataclass(frozen=True)
class HeadExtremes:
    """How many pairs of parts were held against each other, the largest T of each number of valid blocks as
    (T, blocks), and the matched test, if there is one."""

    pairs: int
    largest: tuple[tuple[int, int], ...]
    matched: Matched | None


def paired(a: GroupShape, b: GroupShape) -> bool:
    """Whether layers pair off by position, so that parts meet inside layers only."""
    return a.units == b.units and a.depth == b.depth


def meeting_rows(a: GroupShape, b: GroupShape) -> Rows:
    """Each row of ``a`` with the rows of ``b`` whose parts meet its own; empty where parts are not tested."""
    if part_width(a, b) is None:
        return ()
    if paired(a, b):
        return tuple((row, (other,)) for row, other in same_positions(a, b))
    every = tuple(range(len(b.layers)))
    return tuple((row, every) for row in range(len(a.layers)))


def pairs_of_parts(a: GroupShape, b: GroupShape) -> int:
    """How many pairs of parts meet."""
    width = part_width(a, b)
    rows = sum(len(others) for _, others in meeting_rows(a, b))
    return 0 if width is None else rows * (a.units // width) * (b.units // width)


def choice_of(a: GroupShape, b: GroupShape) -> Choice | None:
    """Who chooses; None where parts are not tested, and where copies of parts on one side could not be told: then those
    that choose might all choose the same."""
    width, rows = part_width(a, b), len(meeting_rows(a, b))
    if width is None or not rows or not all(copies_are_told(side, width, common_block(a, b)) for side in (a, b)):
        return None
    parts_a, parts_b = a.units // width, b.units // width
    of_a, of_b = (rows if paired(a, b) else len(side.layers) for side in (a, b))
    of_a, of_b = of_a * parts_a, of_b * parts_b
    from_a, from_b = (parts_a, parts_b) if paired(a, b) else (of_a, of_b)
    return Choice(of_a if of_a <= of_b else 0, of_b if of_b <= of_a else 0, from_b, from_a)


def copies_are_told(group: GroupShape, width: int, block: int) -> bool:
    """Whether parts of ``width`` units that are copies in every layer have a p that the self-control takes for one."""
    parts = group.units // width
    best = len(group.layers) * (width // block) * math.log10(math.factorial(block))
    return parts == 1 or best >= -COPY_LOG10_P + math.log10(parts * (parts - 1) / 2)


def head_extremes(a: UnitGroup, b: UnitGroup, block: int) -> HeadExtremes:
    """The statistics of all pairs of parts, reduced to what their tests need."""
    pairs = 0
    largest: dict[int, int] = {}
    by_a, by_b = _Chosen(), _Chosen()
    columns: dict[tuple[int, ...], tuple[INT64, INT64]] = {}
    copies = _copied_rows(a)
    for row, others, statistic, counts in _rows(a, b, block):
        pairs += int(np.count_nonzero(counts))
        for blocks in np.unique(counts[counts > 0]).tolist():
            found = int(statistic[counts == blocks].max())
            largest[blocks] = max(found, largest.get(blocks, found))
        if row not in copies:
            by_a = by_a.with_best(statistic, counts)
        columns[others] = _better(statistic, counts, columns.get(others))
    copies = _copied_rows(b)
    for others, (statistic, counts) in columns.items():
        parts = statistic.shape[0] // len(others)
        kept = [place * parts + part for place, row in enumerate(others) if row not in copies for part in range(parts)]
        by_b = by_b.with_best(statistic[kept, None], counts[kept, None])
    return HeadExtremes(
        pairs, tuple((found, blocks) for blocks, found in sorted(largest.items())), _matched(a, b, block, by_a, by_b)
    )


@dataclass(frozen=True)
class _Chosen:
    """T and valid blocks summed over parts that have chosen, and how many these are."""

    statistic: int = 0
    blocks: int = 0
    parts: int = 0

    def with_best(self, statistic: INT64, counts: INT64) -> _Chosen:
        """The same with one more part for each row, which takes the column with the largest T."""
        best = np.where(counts > 0, statistic, np.iinfo(np.int64).min).argmax(axis=1)
        rows = np.arange(len(best))
        found = counts[rows, best] > 0
        return _Chosen(
            self.statistic + int(statistic[rows, best][found].sum()),
            self.blocks + int(counts[rows, best][found].sum()),
            self.parts + int(found.sum()),
        )


def _better(statistic: INT64, counts: INT64, before: tuple[INT64, INT64] | None) -> tuple[INT64, INT64]:
    """For each column the largest T of any row so far, and its valid blocks."""
    own = np.where(counts > 0, statistic, np.iinfo(np.int64).min)
    rows, columns = own.argmax(axis=0), np.arange(own.shape[1])
    best = own[rows, columns], counts[rows, columns]
    if before is None:
        return best
    later = best[0] > before[0]
    return np.where(later, best[0], before[0]), np.where(later, best[1], before[1])


def _matched(a: UnitGroup, b: UnitGroup, block: int, by_a: _Chosen, by_b: _Chosen) -> Matched | None:
    """The matched test with the smaller p of those that are made."""
    choice = choice_of(a, b)
    if choice is None:
        return None
    made = [
        Matched(own.statistic, own.blocks, choice.log10_functions(is_a, own.parts))
        for own, is_a, asked in ((by_a, True, choice.of_a), (by_b, False, choice.of_b))
        if asked and own.blocks
    ]
    return min(made, key=lambda own: matched_log10_p(own, block) + own.log10_functions, default=None)


def matched_log10_p(own: Matched, block: int) -> float:
    """Upper bound of log10 p of a matched test, without what it pays."""
    return float(log10_tail_bounds(np.array([own.statistic]), np.array([own.blocks]), block)[0])


def _copied_rows(group: UnitGroup) -> set[int]:
    """Rows that are copies of an earlier one."""
    cluster = group.control.cluster
    return {row for row, own in enumerate(cluster) if own in cluster[:row]}


def significant_heads(a: UnitGroup, b: UnitGroup, block: int, log10_p: float) -> list[HeadPair]:
    """Pairs of parts whose own p is at or below ``log10_p``."""
    width = part_width(a, b)
    assert width is not None
    parts = b.units // width
    found: list[HeadPair] = []
    for row, others, statistic, counts in _rows(a, b, block):
        if not counts.any():
            continue
        z = standardised(statistic, counts, block)
        for i, j in np.argwhere(significant(statistic, counts, counts > 0, block, log10_p)).tolist():
            found.append((a.layers[row], i, b.layers[others[j // parts]], j % parts, float(z[i, j])))
    return found


def best_heads(pairs: Sequence[HeadPair]) -> tuple[HeadPair, ...]:
    """For each part of either side its best partner, sorted; among equals the nearest place."""
    ranked = sorted(pairs, key=lambda own: (-own[4], abs(own[0] - own[2]), abs(own[1] - own[3]), own))
    of_a: dict[tuple[int, int], HeadPair] = {}
    of_b: dict[tuple[int, int], HeadPair] = {}
    for own in ranked:
        of_a.setdefault(own[:2], own)
        of_b.setdefault(own[2:4], own)
    return tuple(sorted({*of_a.values(), *of_b.values()}))


def _rows(a: UnitGroup, b: UnitGroup, block: int) -> Iterator[tuple[int, tuple[int, ...], INT64, INT64]]:
    """Row by row of ``a``: the rows of ``b`` that it meets, and T and valid blocks of their parts, int64 [parts of a,
    rows x parts of b]."""
    width = part_width(a, b)
    meeting = meeting_rows(a, b)
    if width is None or not meeting:
        return
    first, second = a.codes_for(block), b.codes_for(block)
    for row, others in meeting:
        yield row, others, *products(_parts(first, (row,), width), _parts(second, others, width))


def _parts(codes: Codes, rows: tuple[int, ...], width: int) -> Codes:
    """The codes of some layers, one row a part."""
    values = codes.values[list(rows)].reshape(-1, width)
    valid = codes.valid[list(rows)].reshape(-1, width // codes.block)
    return Codes(codes.block, values, valid, codes.all_valid)
