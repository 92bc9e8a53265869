"""Parts of a layer against parts of a layer: attention heads, and experts of a feed-forward block.

A head that was pruned away, moved to another place or given to another group leaves the order of units inside it as it
was. So every part of ``width`` consecutive units of one side is held against every part of the other; what a pair of
parts says has only width / block blocks (16 for a head of 128: z 10.6 at most), and pays for all pairs of parts.

Which parts meet follows from the shapes. Where layers pair off by position and have as many units, parts meet inside
layers of equal position, which costs little beside the layer pairs that are tested anyway. Else, where nothing says
which layer is which or a layer has lost parts, all parts of all layers meet. One part against one part is the test of
layer pairs, and is not made again.

Layers are gone through one by one: a model of 61 layers of 128 heads has 61 million pairs of heads with its like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import INT64, Codes, products, standardised
from weightprint.compare.meeting import part_width, same_positions
from weightprint.compare.prepared import GroupShape, UnitGroup
from weightprint.compare.selfcontrol import significant

HeadPair = tuple[int, int, int, int, float]
"""(layer of a, part of a, layer of b, part of b, z)"""


@dataclass(frozen=True)
class HeadExtremes:
    """How many pairs of parts were held against each other, and the largest T of each number of valid blocks."""

    pairs: int
    largest: tuple[tuple[int, int], ...]


def meeting_rows(a: GroupShape, b: GroupShape) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Each row of ``a`` with the rows of ``b`` whose parts meet its own; empty where parts are not tested."""
    if part_width(a, b) is None:
        return ()
    if a.units == b.units and a.depth == b.depth:
        return tuple((row, (other,)) for row, other in same_positions(a, b))
    every = tuple(range(len(b.layers)))
    return tuple((row, every) for row in range(len(a.layers)))


def pairs_of_parts(a: GroupShape, b: GroupShape) -> int:
    """How many pairs of parts meet."""
    width = part_width(a, b)
    rows = sum(len(others) for _, others in meeting_rows(a, b))
    return 0 if width is None else rows * (a.units // width) * (b.units // width)


def head_extremes(a: UnitGroup, b: UnitGroup, block: int) -> HeadExtremes:
    """The statistics of all pairs of parts, reduced to what their test needs."""
    pairs = 0
    largest: dict[int, int] = {}
    for _, _, statistic, counts in _rows(a, b, block):
        pairs += int(np.count_nonzero(counts))
        for blocks in np.unique(counts[counts > 0]).tolist():
            found = int(statistic[counts == blocks].max())
            largest[blocks] = max(found, largest.get(blocks, found))
    return HeadExtremes(pairs, tuple((found, blocks) for blocks, found in sorted(largest.items())))


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


def best_heads(pairs: list[HeadPair]) -> tuple[HeadPair, ...]:
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
