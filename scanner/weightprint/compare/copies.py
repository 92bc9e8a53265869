"""Layers of one checkpoint that are copies of each other: what depth up-scaling, stacking and shared layers leave.

A finding about one checkpoint, made by its self-control; it needs no other checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from weightprint.compare.prepared import Prepared


@dataclass(frozen=True)
class LayerCopies:
    """Layers of one stack, by the checkpoint's own numbers, and the channels in which they agree in order."""

    stack: str
    layers: tuple[int, ...]
    channels: tuple[str, ...]

    def sentence(self, name: str) -> str:
        """What a report says of it, of the checkpoint of this name."""
        layers, channels = ", ".join(map(str, self.layers)), " and ".join(self.channels)
        return f"layers {layers} of {self.stack} in {name} are copies of each other (channel {channels})"


def layer_copies(side: Prepared, used: Collection[int] | None = None) -> tuple[LayerCopies, ...]:
    """Copies in every channel that may be tested, or in the groups of which ``used`` holds the id."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for group in side.groups:
        if group.control.failed or (used is not None and id(group) not in used):
            continue
        for rows in group.control.copies:
            found.setdefault((group.stack, tuple(group.layers[row] for row in rows)), []).append(group.channel)
    return tuple(LayerCopies(*place, tuple(channels)) for place, channels in found.items())
