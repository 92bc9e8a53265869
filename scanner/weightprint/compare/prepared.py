"""A fingerprint made ready for many comparisons: codes, copies, self-control and curves are worked out once.

Units are exchangeable only among layers of equal unit count, so a stack whose layers differ in width (varying heads)
gives one group per channel and unit count. Positions count from the stack's first layer, whichever role or channel
has it, so that two checkpoints that number from 0 and from 1 pair alike and a hole shifts nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import Codes, block_length, encode
from weightprint.compare.selfcontrol import SelfControl, self_control
from weightprint.compare.stacks import Curve, Stack, curves_of, stacks_of, unit_curves
from weightprint.compare.units import EnergyKey, LeftOut, exchangeable_units
from weightprint.data import FLOAT32, Fingerprint

CHANNELS = ("v", "o")


@dataclass(frozen=True)
class GroupShape:
    """The layers of one stack and channel that have the same number of units, without their figures.

    ``layers`` are the checkpoint's own numbers, ``positions`` count from the stack's first layer; ``depth`` is that of
    the whole stack.
    """

    stack: str
    channel: str
    units: int
    head_width: int | None
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    depth: int


@dataclass(frozen=True)
class UnitGroup(GroupShape):
    """The same with its figures: ``energies`` is float32 [layers, units]; ``codes`` is None where blocks are shorter
    than two."""

    energies: FLOAT32
    codes: Codes | None
    control: SelfControl

    def codes_for(self, block: int) -> Codes:
        """Codes in blocks of ``block``: the group's own, unless the other side's head width asks for shorter ones."""
        if self.codes is not None and self.codes.block == block:
            return self.codes
        return encode(self.energies, block)


@dataclass(frozen=True)
class Prepared:
    """One side of comparisons."""

    fingerprint: Fingerprint
    groups: tuple[UnitGroup, ...]
    stacks: tuple[Stack, ...]
    curves: dict[tuple[str, str], Curve]
    deviations: bytes  # of all matrices, sorted: fingerprints that differ here are not equal to the bit
    unused: tuple[LeftOut, ...] = ()
    """Energies that are in the fingerprint and take no part in a test."""


def prepare(fingerprint: Fingerprint) -> Prepared:
    """Everything about one fingerprint that does not depend on what it is compared with."""
    stacks = stacks_of(fingerprint)
    units = exchangeable_units(fingerprint)
    return Prepared(
        fingerprint=fingerprint,
        groups=_groups(fingerprint, units.energies, stacks),
        stacks=stacks,
        curves=curves_of(fingerprint, stacks) | unit_curves(units.energies, stacks),
        deviations=np.sort(np.array([matrix.std for matrix in fingerprint.matrices], np.float64)).tobytes(),
        unused=units.left_out,
    )


def _groups(
    fingerprint: Fingerprint, units_of: Mapping[EnergyKey, FLOAT32], stacks: Sequence[Stack]
) -> tuple[UnitGroup, ...]:
    widths = {(m.stack, m.layer, m.role): m.head_width for m in fingerprint.matrices}
    members: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for stack, layer, channel in sorted(units_of):
        members[stack, channel, len(units_of[stack, layer, channel])].append(layer)
    extent = {stack.name: stack for stack in stacks}
    groups = []
    for (stack, channel, units), layers in sorted(members.items(), key=lambda item: item[0][1] != CHANNELS[0]):
        if channel not in CHANNELS or units == 0:
            continue
        known = [width for layer in layers if (width := widths.get((stack, layer, channel)))]
        head_width = math.gcd(*known) if known else None
        energies = np.stack([units_of[stack, layer, channel] for layer in layers]).astype(np.float32)
        block = block_length(units, head_width)
        codes = encode(energies, block) if block >= 2 else None
        first = extent[stack].first if stack in extent else min(layers)
        groups.append(
            UnitGroup(
                stack=stack,
                channel=channel,
                units=units,
                head_width=head_width,
                layers=tuple(layers),
                positions=tuple(layer - first for layer in layers),
                depth=extent[stack].depth if stack in extent else max(layers) - first + 1,
                energies=energies,
                codes=codes,
                control=self_control(energies, codes),
            )
        )
    return tuple(groups)
