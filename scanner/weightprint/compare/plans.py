"""The comparison of two shapes worked out once: its tests, factors, blocks, curves and words; figures come later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from weightprint.compare.blocks import deviation
from weightprint.compare.heads import Choice, Rows, choice_of, meeting_rows, paired, pairs_of_parts
from weightprint.compare.holm import log10_count
from weightprint.compare.meeting import (
    PARTS,
    common_block,
    met,
    missing,
    part_width,
    same_positions,
    suffixes,
    uncut,
    unique,
)
from weightprint.compare.packed import Label, Shape
from weightprint.compare.products import Chosen
from weightprint.compare.screen import RolePlan, choose, gap_reasons, role_plans


@dataclass(frozen=True)
class TestPlan:
    """A test that every pair of the two shapes gets."""

    __test__ = False  # not a pytest class

    name: str
    blocks: int
    block: int
    log10_factor: float
    """What the test pays for the others of its pair, and for what it chooses from."""
    bounded: bool = False
    """Whether its p is an upper bound, so far in the tail that an exact one would cost much and say no more."""

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of its T."""
        return float(deviation(self.blocks, self.block))


@dataclass(frozen=True)
class GridPlan:
    """Two groups that meet: their numbers in their shapes, the length of their blocks, the layer pairs of the whole
    test, which layers' parts of ``width`` units meet and who chooses, and the tests made of them."""

    a: int
    b: int
    block: int
    chosen: Chosen
    width: int
    meeting: Rows
    paired: bool
    choice: Choice | None
    whole: TestPlan | None
    layers: TestPlan | None
    heads: TestPlan | None
    matched: TestPlan | None

    @property
    def tests(self) -> tuple[TestPlan, ...]:
        """The tests that are made, in the order of a comparison."""
        return tuple(test for test in (self.whole, self.layers, self.heads, self.matched) if test is not None)


@dataclass(frozen=True)
class CurvePlan:
    """Where the points of one role's curves lie among those of all, on either side."""

    role: str
    points_a: tuple[int, ...]
    points_b: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class PairPlan:
    """All that pairs of two shapes share. ``fitting`` says that the packed codes serve: blocks of another length than
    theirs, or of its divisors, would need the energies."""

    grids: tuple[GridPlan, ...]
    curves: tuple[CurvePlan, ...]
    fitting: bool
    uncut: tuple[str, ...]
    gaps: tuple[str, ...]
    shapes: tuple[Shape, Shape]

    @cached_property
    def tests(self) -> tuple[TestPlan, ...]:
        """Every test, in the order of a comparison."""
        return tuple(test for grid in self.grids for test in grid.tests)

    @cached_property
    def _missing(self) -> bool:
        """Whether a channel is missing or differs, so that names have to be put into sentences."""
        return bool(missing(("", ""), (self.shapes[0].groups, self.shapes[1].groups)))

    def reasons(self, a: Label, b: Label) -> tuple[str, ...]:
        """What a comparison that found nothing says."""
        order = [left.sentence(side.name) for side in (a, b) for left in side.unused]
        if self._missing:
            order += missing((a.name, b.name), (self.shapes[0].groups, self.shapes[1].groups))
        partial = tuple(f"{s.name} is {s.status}: {s.reason}" for s in (a, b) if s.status != "complete")
        return (*unique([*order, *self.uncut]), *self.gaps, *partial)


@lru_cache(maxsize=1024)
def plan_pairs(a: Shape, b: Shape) -> PairPlan:
    """The plan of regular fingerprints of these shapes, whose blocks are all valid and whose layers are no copies."""
    meetings = met(a.groups, b.groups)
    cut = [(x, y) for x, y in meetings if uncut(x, y) is None]
    drafts = []
    for (x, y), suffix in zip(cut, suffixes(cut), strict=True):
        alike = x.units == y.units
        chosen = same_positions(x, y) if alike and x.depth == y.depth else []
        pairs = len(x.layers) * len(y.layers) if alike else 0
        layer_pairs = 0 if pairs == 1 == len(chosen) else pairs
        drafts.append((x, y, suffix, chosen, layer_pairs, pairs_of_parts(x, y)))
    choices = [choice_of(x, y) if parts else None for x, y, *_, parts in drafts]
    number = sum(bool(chosen) + bool(pairs) + bool(parts) for *_, chosen, pairs, parts in drafts)
    number += sum(choice is not None for choice in choices)
    grids = []
    for (x, y, suffix, chosen, pairs, parts), choice in zip(drafts, choices, strict=True):
        block = common_block(x, y)
        blocks, width = x.units // block, part_width(x, y) or 0
        whole = TestPlan(f"{x.channel} whole{suffix}", blocks * len(chosen), block, log10_count(number))
        layers = TestPlan(f"{x.channel} layers{suffix}", blocks, block, log10_count(number * pairs))
        called, each = f"{PARTS[x.channel]}{suffix}", width // block
        heads = TestPlan(f"{x.channel} {called}", each, block, log10_count(number * parts))
        matched = None
        if choice is not None:
            by_a = choice.of_a > 0
            choosing = choice.of_a or choice.of_b
            factor = log10_count(number) + choice.log10_functions(by_a, choosing)
            matched = TestPlan(f"{x.channel} matched {called}", choosing * each, block, factor, bounded=True)
        rows, columns = np.array(chosen, np.intp).reshape(-1, 2).T
        grids.append(
            GridPlan(
                a=_index(a, x),
                b=_index(b, y),
                block=block,
                chosen=(rows, columns),
                width=width,
                meeting=meeting_rows(x, y),
                paired=paired(x, y),
                choice=choice,
                whole=whole if chosen else None,
                layers=layers if pairs else None,
                heads=heads if parts else None,
                matched=matched,
            )
        )
    curves, gaps = _curves(a, b)
    return PairPlan(
        grids=tuple(grids),
        curves=curves,
        fitting=all(a.blocks[g.a] % g.block == 0 == b.blocks[g.b] % g.block for g in grids),
        uncut=tuple(why for x, y in meetings if (why := uncut(x, y)) is not None),
        gaps=gaps,
        shapes=(a, b),
    )


def _index(shape: Shape, group: object) -> int:
    return next(number for number, own in enumerate(shape.groups) if own is group)


def _curves(a: Shape, b: Shape) -> tuple[tuple[CurvePlan, ...], tuple[str, ...]]:
    stacks = choose([name for name, _ in a.stacks], [name for name, _ in b.stacks])
    if stacks is None:
        return (), ()
    depths = (dict(a.stacks)[stacks[0]], dict(b.stacks)[stacks[1]])
    plans = role_plans(stacks, depths, (a.curve_positions(), b.curve_positions()))
    gaps = {plan.role: plan.gap for plan in plans if plan.gap is not None}
    return tuple(_curve(a, b, stacks, plan) for plan in plans if plan.gap is None), gap_reasons(gaps)


def _curve(a: Shape, b: Shape, stacks: tuple[str, str], plan: RolePlan) -> CurvePlan:
    start_a, start_b = a.curve_start(stacks[0], plan.role), b.curve_start(stacks[1], plan.role)
    return CurvePlan(
        role=plan.role,
        points_a=tuple(start_a + point for point in plan.points_a),
        points_b=tuple(start_b + point for point in plan.points_b),
        length=plan.length,
    )
