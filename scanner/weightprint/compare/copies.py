"""Layers of one checkpoint, and heads of its layers, that are copies of each other: what depth up-scaling, stacking,
shared layers and repeated key-value heads leave.

A finding about one checkpoint, made by its self-control; it needs no other checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from weightprint.compare.meeting import PARTS
from weightprint.compare.prepared import Prepared


@dataclass(frozen=True)
class Copies:
    """Copies in one stack, and the channels in which they agree in order. ``of`` is "layers", which bear the
    checkpoint's own numbers, or what the parts of a layer are called, which are counted in every layer."""

    stack: str
    of: str
    numbers: tuple[int, ...]
    channels: tuple[str, ...]

    def sentence(self, name: str) -> str:
        """What a report says of it, of the checkpoint of this name."""
        numbers, channels = ", ".join(map(str, self.numbers)), " and ".join(self.channels)
        where = self.stack if self.of == "layers" else f"every layer of {self.stack}"
        return f"{self.of} {numbers} of {where} in {name} are copies of each other (channel {channels})"


def copies_of(side: Prepared, used: Collection[int] | None = None) -> tuple[Copies, ...]:
    """Copies in every channel that may be tested, or in the groups of which ``used`` holds the id."""
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for group in side.groups:
        if group.control.failed or (used is not None and id(group) not in used):
            continue
        for rows in group.control.copies:
            numbers = tuple(group.layers[row] for row in rows)
            found.setdefault((group.stack, "layers", numbers), []).append(group.channel)
        for parts in group.copied_parts:
            found.setdefault((group.stack, PARTS[group.channel], parts), []).append(group.channel)
    return tuple(Copies(*place, tuple(channels)) for place, channels in found.items())
