"""The tests of one pair: whole model, layer pairs, head pairs, per channel and pair of stacks; and the map of layers.

Every stack of one side meets every stack of the other that has as many units in the same channel, or heads as wide.
Three resolutions:

* whole: layer l with layer l, where both stacks are equally deep. T is a sum of independent block products as long as
  copies are respected: take clusters of copied layers as nodes and the chosen layer pairs as edges. If the edges form
  a forest, a leaf's units can be permuted without touching any other term, so by induction all terms are independent
  and uniform under the null hypothesis, whatever the copies inside a cluster look like. Layer pairs that would close a
  cycle are left out: copies on both sides count once, copies on one side lose nothing.
* layers: the smallest p of all z_ij, times the number of layer pairs. Bonferroni needs no independence.
* heads: the smallest p of all pairs of heads that meet (heads.py), times their number.

Each pays for all tests made in the pair (channels x stack pairs x resolutions). One layer against one layer is a
whole test and no second one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import INT64, products, standardised
from weightprint.compare.copies import layer_copies
from weightprint.compare.exact import log10_tail
from weightprint.compare.heads import HeadExtremes, HeadPair, best_heads, head_extremes, significant_heads
from weightprint.compare.holm import bonferroni, log10_count
from weightprint.compare.meeting import PARTS, common_block, met, missing, same_positions, suffixes, uncut, unique
from weightprint.compare.prepared import Prepared, UnitGroup
from weightprint.compare.selfcontrol import significant
from weightprint.data import Test

MAP_LOG10_ALPHA = -6.0

LayerMap = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Evidence:
    """What the order code says of a pair. ``pair_log10_p`` is corrected inside the pair, None without any test."""

    tests: tuple[Test, ...]
    pair_log10_p: float | None
    layer_map: LayerMap
    reasons: tuple[str, ...]
    head_map: tuple[HeadPair, ...] = ()


@dataclass(frozen=True)
class _Grid:
    """T and valid blocks of every layer of group ``a`` with every layer of group ``b``, none where these have other
    numbers of units; and of their heads."""

    a: UnitGroup
    b: UnitGroup
    block: int
    statistic: INT64
    counts: INT64
    whole: tuple[tuple[int, int], ...]
    left_out: int
    heads: HeadExtremes

    @property
    def layer_pairs(self) -> int:
        """Layer pairs to be tested one by one; none where the whole test is already the only one."""
        pairs = int(np.count_nonzero(self.counts))
        return 0 if pairs == 1 == len(self.whole) else pairs

    @property
    def made(self) -> int:
        """How many tests this grid gives."""
        return bool(self.whole) + bool(self.layer_pairs) + bool(self.heads.pairs)


def order_tests(a: Prepared, b: Prepared) -> Evidence:
    """Test every channel and stack pair that the two sides share."""
    names = (a.fingerprint.name, b.fingerprint.name)
    grids: list[_Grid] = []
    reasons = [left.sentence(name) for name, side in zip(names, (a, b), strict=True) for left in side.unused]
    reasons += missing(names, (a.groups, b.groups))
    for x, y in met(a.groups, b.groups):
        refusal = _refusal(a, b, x, y)
        if refusal:
            reasons.append(refusal)
            continue
        grid = _grid(x, y)
        if grid.made:
            grids.append(grid)
        else:
            reasons.append(f"channel {x.channel}: no block is free of ties and non-finite units on both sides")
    if not grids:
        return Evidence((), None, (), unique(reasons))
    number = sum(grid.made for grid in grids)
    endings = suffixes([(grid.a, grid.b) for grid in grids])
    tested = [(g, test) for g, suffix in zip(grids, endings, strict=True) for test in _tests(g, number, suffix)]
    best_grid, best = min(tested, key=lambda entry: entry[1].log10_p + entry[1].log10_factor)
    layer_map, head_map = _maps([g for g in grids if _stacks(g) == _stacks(best_grid)], number)
    used = {id(group) for grid in grids for group in (grid.a, grid.b)}
    reasons += [
        own.sentence(name) for name, side in zip(names, (a, b), strict=True) for own in layer_copies(side, used)
    ]
    reasons += [
        f"channel {grid.a.channel}: {grid.left_out} layers that are copies on both sides are counted once"
        for grid in grids
        if grid.left_out
    ]
    if head_map:
        reasons.append(
            f"{len(head_map)} pairs of parts of layers ({_called(best_grid)}) agree, not all at the same place"
        )
    smallest = bonferroni(best.log10_p, best.log10_factor)
    return Evidence(tuple(test for _, test in tested), smallest, layer_map, unique(reasons), head_map)


def _grid(a: UnitGroup, b: UnitGroup) -> _Grid:
    block = common_block(a, b)
    if a.units == b.units:
        statistic, counts = products(a.codes_for(block), b.codes_for(block))
    else:
        statistic, counts = np.zeros((2, len(a.layers), len(b.layers)), np.int64)
    whole, left_out = _whole_pairs(a, b, counts) if a.depth == b.depth else ((), 0)
    return _Grid(a, b, block, statistic, counts, whole, left_out, head_extremes(a, b, block))


def _whole_pairs(a: UnitGroup, b: UnitGroup, counts: INT64) -> tuple[tuple[tuple[int, int], ...], int]:
    """Rows of equal position, less those that would close a cycle between clusters of copies; and their number."""
    pairs = [(i, j) for i, j in same_positions(a, b) if counts[i, j]]
    if not a.control.copies or not b.control.copies:
        return tuple(pairs), 0
    tree: dict[tuple[str, int], tuple[str, int]] = {}

    def root(node: tuple[str, int]) -> tuple[str, int]:
        while node in tree:
            node = tree[node]
        return node

    kept = []
    for i, j in pairs:
        one, other = root(("a", a.control.cluster[i])), root(("b", b.control.cluster[j]))
        if one != other:
            tree[one] = other
            kept.append((i, j))
    return tuple(kept), len(pairs) - len(kept)


def _tests(grid: _Grid, number: int, suffix: str) -> Iterable[Test]:
    if grid.whole:
        rows, columns = np.array(grid.whole).T
        statistic, blocks = int(grid.statistic[rows, columns].sum()), int(grid.counts[rows, columns].sum())
        yield made_test(f"{grid.a.channel} whole{suffix}", (statistic, blocks, grid.block), number)
    if grid.layer_pairs:
        best = _smallest(_extremes(grid), grid.block)
        yield made_test(f"{grid.a.channel} layers{suffix}", (*best, grid.block), number * grid.layer_pairs)
    if grid.heads.pairs:
        best = _smallest(grid.heads.largest, grid.block)
        yield made_test(f"{grid.a.channel} {_called(grid)}{suffix}", (*best, grid.block), number * grid.heads.pairs)


def _smallest(extremes: Iterable[tuple[int, int]], block: int) -> tuple[int, int]:
    """The (T, blocks) with the smallest p."""
    return min(extremes, key=lambda entry: log10_tail(entry[0], entry[1], block))


def _called(grid: _Grid) -> str:
    return PARTS[grid.a.channel]


def _extremes(grid: _Grid) -> Iterable[tuple[int, int]]:
    """The largest T of each number of blocks: the smallest p is among them."""
    for blocks in np.unique(grid.counts):
        if blocks > 0:
            yield int(grid.statistic[grid.counts == blocks].max()), int(blocks)


def made_test(name: str, outcome: tuple[int, int, int], number: int) -> Test:
    """The test of this ``outcome``: statistic, blocks, length of a block."""
    statistic, blocks, block = outcome
    return Test(
        name=name,
        statistic=statistic,
        blocks=blocks,
        z=float(standardised(statistic, blocks, block)),
        log10_p=log10_tail(statistic, blocks, block),
        log10_factor=log10_count(number),
    )


def _maps(grids: Sequence[_Grid], number: int) -> tuple[LayerMap, tuple[HeadPair, ...]]:
    """For each layer of either side that has a significant partner, its best one, [a_layer, b_layer, z], sorted; and
    for each head, unless every head is where its layer says."""
    found: dict[tuple[int, int], float] = {}
    heads: list[HeadPair] = []
    for grid in grids:
        if grid.heads.pairs:
            limit = MAP_LOG10_ALPHA - log10_count(number * grid.heads.pairs)
            heads += significant_heads(grid.a, grid.b, grid.block, limit)
        if grid.layer_pairs or grid.whole:
            limit = MAP_LOG10_ALPHA - log10_count(number * int(np.count_nonzero(grid.counts)))
            every = standardised(grid.statistic, grid.counts, grid.block)
            for i, j in np.argwhere(significant(grid.statistic, grid.counts, grid.counts > 0, grid.block, limit)):
                key = (grid.a.layers[i], grid.b.layers[j])
                found[key] = max(found.get(key, 0.0), float(every[i, j]))
    head_map = best_heads(heads)
    for layer_a, _, layer_b, _, z in head_map:
        found.setdefault((layer_a, layer_b), z)
    layer_map = _best_layers(found)
    pairs = {(layer_a, layer_b) for layer_a, layer_b, _ in layer_map}
    in_place = all(i == j and (layer_a, layer_b) in pairs for layer_a, i, layer_b, j, _ in head_map)
    return layer_map, () if in_place else head_map


def _best_layers(found: Mapping[tuple[int, int], float]) -> LayerMap:
    # Copies tie: among equals the nearest layer number.
    ranked = sorted(found, key=lambda key: (-found[key], abs(key[0] - key[1]), key))
    best_of_a: dict[int, tuple[int, int]] = {}
    best_of_b: dict[int, tuple[int, int]] = {}
    for key in ranked:
        best_of_a.setdefault(key[0], key)
        best_of_b.setdefault(key[1], key)
    return tuple((*key, found[key]) for key in sorted({*best_of_a.values(), *best_of_b.values()}))


def _refusal(a: Prepared, b: Prepared, x: UnitGroup, y: UnitGroup) -> str | None:
    for side, group in ((a, x), (b, y)):
        if group.control.failed:
            return (
                f"channel {group.channel} of {group.stack} in {side.fingerprint.name} is not used: its own layers "
                f"agree in order (median z {group.control.median:.1f} over {group.control.pairs} pairs, limit "
                f"{group.control.threshold:.1f}), so its units are not exchangeable"
            )
    return uncut(x, y)


def _stacks(grid: _Grid) -> tuple[str, str]:
    return grid.a.stack, grid.b.stack
