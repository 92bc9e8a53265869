"""What follows of a comparison from two shapes alone: which groups meet, in what blocks, layer by layer or not, under
which names, and what is said of the rest. No figure is looked at, so all pairs of the same two shapes share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from weightprint.compare.blocks import block_length
from weightprint.compare.prepared import CHANNELS, GroupShape
from weightprint.data import FEED_FORWARD_ROLES

Group = TypeVar("Group", bound=GroupShape)


PARTS: Mapping[str, str] = {"v": "heads", "o": "heads", **dict.fromkeys(FEED_FORWARD_ROLES, "experts")}
"""What the parts of a layer are called, by channel."""


def met(a: Sequence[Group], b: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Every group of ``a`` with every group of ``b`` of the same channel that has as many units, or parts as wide."""
    return [(x, y) for x in a for y in b if x.channel == y.channel and (x.units == y.units or part_width(x, y))]


def part_width(a: GroupShape, b: GroupShape) -> int | None:
    """Units of the parts (heads) that two groups have in common; None where no config says it, where the sides differ,
    and where either layer is one part."""
    width = a.head_width
    if width is None or width != b.head_width or a.units == b.units == width or common_block(a, b) < 2:
        return None
    return width if a.units % width == 0 == b.units % width else None


def common_block(a: GroupShape, b: GroupShape) -> int:
    """Length of the blocks in which two groups meet; below 2 they cannot."""
    return block_length(math.gcd(a.units, b.units), a.head_width, b.head_width)


def uncut(a: GroupShape, b: GroupShape) -> str | None:
    """Why two groups cannot be cut into common blocks, if so."""
    if common_block(a, b) >= 2:
        return None
    return (
        f"channel {a.channel}: {a.units} units in heads of {a.head_width or 'unknown width'} and "
        f"{b.head_width or 'unknown width'} cannot be cut into blocks of 2 to 8"
    )


def same_positions(a: GroupShape, b: GroupShape) -> list[tuple[int, int]]:
    """Rows of equal position of two groups."""
    row_of = {position: row for row, position in enumerate(b.positions)}
    return [(row, row_of[position]) for row, position in enumerate(a.positions) if position in row_of]


def suffixes(met: Sequence[tuple[GroupShape, GroupShape]]) -> list[str]:
    """What the names of each meeting's tests end in, so that no two are called the same."""
    several = len({(a.stack, b.stack) for a, b in met}) > 1
    crowded = len({(a.channel, a.stack, b.stack) for a, b in met}) < len(met)
    return [
        (f" [{a.stack} ~ {b.stack}]" if several else "") + (f" ({_counts(a, b)} units)" if crowded else "")
        for a, b in met
    ]


def _counts(a: GroupShape, b: GroupShape) -> str:
    return str(a.units) if a.units == b.units else f"{a.units} ~ {b.units}"


def missing(names: tuple[str, str], groups: tuple[Sequence[GroupShape], Sequence[GroupShape]]) -> list[str]:
    """What is said of a channel that one side has not, or that has other numbers of units on both."""
    reasons = []
    with_blocks = [any(group.channel in FEED_FORWARD_ROLES for group in side) for side in groups]
    for channel in CHANNELS:
        sides = [sorted({group.units for group in side if group.channel == channel}) for side in groups]
        if channel in FEED_FORWARD_ROLES and not (all(with_blocks) and any(sides)):
            continue
        for name, units in zip(names, sides, strict=True):
            if not units:
                reasons.append(f"{name} has no units of channel {channel}")
        own = [[group for group in side if group.channel == channel] for side in groups]
        if all(sides) and not met(*own):
            first, second = (", ".join(map(str, units)) for units in sides)
            widths = [", ".join(sorted({str(group.head_width or "unknown width") for group in side})) for side in own]
            reasons.append(
                f"unit counts differ: {channel} {first} against {second}, in {PARTS[channel]} of {widths[0]} and "
                f"{widths[1]}"
            )
    if any(with_blocks) and not all(with_blocks):
        name = names[with_blocks.index(False)]
        reasons.append(f"feed-forward blocks are not compared: of {name} none was read (--read all reads them)")
    return reasons


def unique(reasons: Sequence[str]) -> tuple[str, ...]:
    """Every reason once, in order."""
    return tuple(dict.fromkeys(reasons))
