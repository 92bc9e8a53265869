"""Many pairs at once: exact products of packed codes, and one by one whatever these cannot decide.

For every pair the result is that of :func:`weightprint.compare.compare_pair`, to the bit. A batch holds pairs of the
same two shapes. Of these, a pair is *decided* when none of its tests reaches 1e-6 after correction inside the pair:
then its layer map is empty, no rounding of formats is looked at, and unless its standard deviations are bit-equal
nothing else could be said of it. All others, and those of fingerprints that are not regular, are compared one by one.

No test is left out and no pair is filtered beforehand: all layers of a meet all layers of b in every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import BOOL, FLOAT64, INT64
from weightprint.compare.comparisons import Batch, Comparisons
from weightprint.compare.exact import critical, log10_tail_bounds, log10_tails
from weightprint.compare.invariants import agreements_of_classes
from weightprint.compare.layers import MAP_LOG10_ALPHA
from weightprint.compare.packed import INT8, Collection, ShapeClass
from weightprint.compare.plans import CurvePlan, GridPlan, PairPlan, TestPlan, plan_pairs
from weightprint.compare.prepared import Prepared
from weightprint.compare.products import Product, is_wide, recode, tile_of
from weightprint.compare.screen import centred, constant, cosine, stretch
from weightprint.data import Comparison
from weightprint.engine.settings import processors

_MARGIN = 1e-6  # of log10 p: rounding may differ where the limit is written another way round
_CURVE_PAIRS = 2**14
_NONE_CHOSEN = (np.zeros(0, np.intp), np.zeros(0, np.intp))

Load = Callable[[int], Prepared]
"""A side by its number, made ready to be compared one by one."""

Single = Callable[[Prepared, Prepared], Comparison]


@dataclass(frozen=True)
class Pairs:
    """Pairs of two classes: numbers int64 [pairs] in the report, rows int64 [pairs] in either class."""

    numbers: INT64
    rows_a: INT64
    rows_b: INT64

    def where(self, chosen: BOOL) -> Pairs:
        """Some of them."""
        return Pairs(self.numbers[chosen], self.rows_a[chosen], self.rows_b[chosen])


def compare_collection(
    collection: Collection,
    pairs: INT64,
    load: Load,
    single: Single,
    product: Product,
    limit: float = MAP_LOG10_ALPHA,
) -> Comparisons:
    """Compare ``pairs`` int64 [pairs, 2] of a collection; ``load`` and ``single`` do those that remain: all in which a
    test reaches ``limit``, a log10 p, after correction inside the pair. Raises DamagedCodes."""
    assert limit >= MAP_LOG10_ALPHA
    batches = []
    remaining = np.ones(len(pairs), bool)
    for a, b, own in _by_classes(collection, pairs):
        plan = plan_pairs(a.shape, b.shape)
        if plan.fitting:
            batch = _batch(plan, a, b, own, product, limit)
            batches.append(batch)
            remaining[batch.pairs] = False
    singled = {
        number: single(load(int(pairs[number, 0])), load(int(pairs[number, 1])))
        for number in np.flatnonzero(remaining).tolist()
    }
    return Comparisons(collection.labels, pairs, batches, singled)


def _by_classes(collection: Collection, pairs: INT64) -> Iterator[tuple[ShapeClass, ShapeClass, Pairs]]:
    """The pairs of regular fingerprints, by the classes of their sides."""
    classes = collection.class_of[pairs]
    keys = classes[:, 0] * len(collection.classes) + classes[:, 1]
    keys[(classes < 0).any(axis=1)] = -1
    order = np.argsort(keys, kind="stable")[int((keys < 0).sum()) :]
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for numbers in np.split(order, edges) if len(order) else ():
        a, b = divmod(int(keys[numbers[0]]), len(collection.classes))
        rows = collection.row_of[pairs[numbers]]
        yield collection.classes[a], collection.classes[b], Pairs(numbers, rows[:, 0].copy(), rows[:, 1].copy())


def _batch(plan: PairPlan, a: ShapeClass, b: ShapeClass, pairs: Pairs, product: Product, limit: float) -> Batch:
    """The pairs that are decided, with all their figures."""
    open_ended = a.deviations[pairs.rows_a] == b.deviations[pairs.rows_b]
    for curve in plan.curves:
        flat_a, flat_b = (constant(_points(side, own)) for side, own in ((a, curve.points_a), (b, curve.points_b)))
        open_ended |= flat_a[pairs.rows_a] | flat_b[pairs.rows_b]
    pairs = pairs.where(~open_ended)
    columns = [column for grid in plan.grids for column in _statistics(grid, a, b, pairs, product)]
    statistic = np.stack(columns, axis=1) if columns else np.zeros((len(pairs.numbers), 0), np.int64)
    undecided = np.zeros(len(pairs.numbers), bool)
    for column, test in zip(columns, plan.tests, strict=True):
        undecided |= _decisive(column, test, limit)
    pairs, statistic = pairs.where(~undecided), statistic[~undecided]
    log10_p = np.empty(statistic.shape, np.float64)
    for number, test in enumerate(plan.tests):
        log10_p[:, number] = _log10_p(statistic[:, number], test)
    agreements = agreements_of_classes(a, b, pairs.rows_a, pairs.rows_b)
    return Batch(plan, pairs.numbers, statistic, log10_p, _correlations(plan.curves, a, b, pairs), agreements)


def _decisive(statistic: INT64, test: TestPlan, limit: float) -> BOOL:
    """Which T make their pairs candidates for more than "nothing found"."""
    log10_p = min(limit + _MARGIN, -_MARGIN) - test.log10_factor
    if test.bounded:
        return np.asarray(_log10_p(statistic, test) <= log10_p)
    return np.asarray(statistic >= critical(log10_p, test.blocks, test.block))


def _log10_p(statistic: INT64, test: TestPlan) -> FLOAT64:
    """log10 p of each T."""
    if test.bounded:
        return log10_tail_bounds(statistic, np.full(len(statistic), test.blocks), test.block)
    return log10_tails(statistic, test.blocks, test.block)


def _statistics(grid: GridPlan, a: ShapeClass, b: ShapeClass, pairs: Pairs, product: Product) -> list[INT64]:
    """T of the grid's tests, int64 [pairs] each."""
    stored = (a.shape.blocks[grid.a], b.shape.blocks[grid.b])
    units = (a.codes[grid.a].shape[2], b.codes[grid.b].shape[2])
    layers = (a.codes[grid.a].shape[1], b.codes[grid.b].shape[1])
    wide = is_wide(units[0], grid.block)
    whole, best, best_head, matched = np.empty((4, len(pairs.numbers)), np.int64)

    def work(places: INT64) -> None:
        rows, row_of = np.unique(pairs.rows_a[places], return_inverse=True)
        columns, column_of = np.unique(pairs.rows_b[places], return_inverse=True)
        first = recode(a.taken(grid.a, rows), stored[0], grid.block)
        second = recode(b.taken(grid.b, columns), stored[1], grid.block)
        if grid.whole or grid.layers:
            sums = product(first, second, grid.chosen, wide)
            whole[places] = sums.whole[row_of, column_of]
            best[places] = sums.best[row_of, column_of]
        if grid.heads:
            own_best, own_matched = _head_sums(grid, first, second, product)
            best_head[places] = own_best[row_of, column_of]
            matched[places] = own_matched[row_of, column_of]

    tiles = list(_tiles(pairs, *tile_of(*layers, max(units))))
    if len(tiles) > 1:
        with ThreadPoolExecutor(min(processors(), len(tiles))) as threads:
            # A list, so that what a thread raises is raised here.
            list(threads.map(work, tiles))
    else:
        for tile in tiles:
            work(tile)
    made = ((whole, grid.whole), (best, grid.layers), (best_head, grid.heads), (matched, grid.matched))
    return [column for column, test in made if test is not None]


def _head_sums(grid: GridPlan, first: INT8, second: INT8, product: Product) -> tuple[INT64, INT64]:
    """Over all pairs of parts that meet: the largest T, and T of the matched test; int64 [rows, columns] each."""
    best = np.full((len(first), len(second)), np.iinfo(np.int64).min)
    of_a, of_b = np.zeros((2, len(first), len(second)), np.int64)
    if grid.paired:
        for row, (other,) in grid.meeting:
            sums = product(_parts(first[:, row], grid.width), _parts(second[:, other], grid.width), _NONE_CHOSEN, False)
            np.maximum(best, sums.best, out=best)
            of_a += sums.of_a
            of_b += sums.of_b
    else:
        others = _parts(second, grid.width)
        for member in range(len(first)):  # one by one: a tile of heads is much larger than one of layers
            own = _parts(first[member : member + 1], grid.width)
            _, (best[member],), (of_a[member],), (of_b[member],) = product(own, others, _NONE_CHOSEN, False)
    if grid.choice is None or (grid.choice.of_a and grid.choice.of_b):
        return best, np.maximum(of_a, of_b)
    return best, of_a if grid.choice.of_a else of_b


def _parts(codes: INT8, width: int) -> INT8:
    """Codes [members, ...] of layers as codes [members, parts, width]."""
    return np.ascontiguousarray(codes).reshape(len(codes), -1, width)


def _tiles(pairs: Pairs, rows: int, columns: int) -> Iterator[INT64]:
    """Places of the pairs that lie in the same tile of so many rows and columns, tile by tile, in order of columns
    inside a row of tiles: a file is read from front to back."""
    if not len(pairs.numbers):
        return
    across = int(pairs.rows_b.max()) // columns + 1
    tile = pairs.rows_a // rows * across + pairs.rows_b // columns
    order = np.argsort(tile, kind="stable")
    edges = np.flatnonzero(np.diff(tile[order])) + 1
    yield from np.split(order, edges)


def _correlations(curves: Sequence[CurvePlan], a: ShapeClass, b: ShapeClass, pairs: Pairs) -> FLOAT64:
    """r of each curve, float64 [pairs, curves]."""
    correlations = np.empty((len(pairs.numbers), len(curves)), np.float64)
    for number, curve in enumerate(curves):
        # A constant curve has no z-scores; its pairs are not among these.
        with np.errstate(invalid="ignore", divide="ignore"):
            first = centred(stretch(_points(a, curve.points_a), curve.length))
            second = centred(stretch(_points(b, curve.points_b), curve.length))
        squares_a, squares_b = (first * first).sum(-1), (second * second).sum(-1)
        for start in range(0, len(pairs.numbers), _CURVE_PAIRS):
            some = slice(start, start + _CURVE_PAIRS)
            i, j = pairs.rows_a[some], pairs.rows_b[some]
            correlations[some, number] = cosine((first[i] * second[j]).sum(-1), squares_a[i], squares_b[j])
    return correlations


def _points(side: ShapeClass, points: tuple[int, ...]) -> FLOAT64:
    # take gives rows that lie together in memory, which sums depend on.
    return np.take(side.points, points, axis=1)
