"""A fingerprint made ready for many comparisons: codes, copies, self-control and curves are worked out once.

Positions of feed-forward blocks count from the first layer that has one, so that reading them moves nothing else.

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

from weightprint.compare import repeats
from weightprint.compare.blocks import INT64, Codes, block_length, encode
from weightprint.compare.experts import counted_once
from weightprint.compare.selfcontrol import SelfControl, self_control
from weightprint.compare.stacks import Curve, Stack, curves_of, stacks_of, unit_curves
from weightprint.compare.units import EnergyKey, LeftOut, exchangeable_units
from weightprint.data import ATTENTION_ROLES, FEED_FORWARD_ROLES, FLOAT32, Fingerprint

CHANNELS = ("v", "o", *FEED_FORWARD_ROLES)
"""Channels in the order of tests; those of feed-forward blocks are called like the roles."""


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
    than two. Heads and experts that repeat another one of their layer have energies of nan; ``copied_parts`` are the
    heads that are copies of each other in every layer."""

    energies: FLOAT32
    codes: Codes | None
    control: SelfControl
    copied_parts: tuple[tuple[int, ...], ...] = ()

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
    groups, repeated = _groups(fingerprint, units.energies, stacks)
    return Prepared(
        fingerprint=fingerprint,
        groups=groups,
        stacks=stacks,
        curves=curves_of(fingerprint, stacks) | unit_curves(units.energies, stacks),
        deviations=np.sort(np.array(_deviations(fingerprint), np.float64)).tobytes(),
        unused=(*units.left_out, *repeated),
    )


def _deviations(fingerprint: Fingerprint) -> list[float]:
    """Those of attention, so that one with feed-forward matrices and one without may be the same; else of all."""
    attention = [matrix.std for matrix in fingerprint.matrices if matrix.role in ATTENTION_ROLES]
    return attention or [matrix.std for matrix in fingerprint.matrices]


def _groups(
    fingerprint: Fingerprint, units_of: Mapping[EnergyKey, FLOAT32], stacks: Sequence[Stack]
) -> tuple[tuple[UnitGroup, ...], tuple[LeftOut, ...]]:
    widths = {(m.stack, m.layer, m.role): m.head_width for m in fingerprint.matrices}
    members: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for stack, layer, channel in sorted(units_of):
        members[stack, channel, len(units_of[stack, layer, channel])].append(layer)
    of_attention = {stack.name: stack for stack in stacks}
    of_blocks = {stack.name: stack for stack in stacks_of(fingerprint, FEED_FORWARD_ROLES)}
    known_members = {key: layers for key, layers in members.items() if key[1] in CHANNELS and key[2]}
    first_of: dict[tuple[str, int, int, int], INT64] = {}
    groups, left_out = [], []
    for (stack, channel, units), layers in sorted(known_members.items(), key=lambda item: CHANNELS.index(item[0][1])):
        known = [width for layer in layers if (width := widths.get((stack, layer, channel)))]
        head_width = math.gcd(*known) if known else None
        energies = np.stack([units_of[stack, layer, channel] for layer in layers]).astype(np.float32)
        extent = of_blocks if channel in FEED_FORWARD_ROLES else of_attention
        if channel in FEED_FORWARD_ROLES and head_width is not None:
            energies, repeated = counted_once(energies, head_width)
            if repeated:
                left_out.append(_repeated(stack, channel, repeated, len(layers) * (units // head_width)))
        block = block_length(units, head_width)
        copies: tuple[tuple[int, ...], ...] = ()
        if head_width and units % head_width == 0 and block >= 2 and channel not in FEED_FORWARD_ROLES:
            values = [first_of.get((stack, layer, units, head_width)) for layer in layers]
            if any(own is not None for own in values):
                alone = np.arange(units // head_width)
                energies = repeats.added_up(energies, head_width, np.stack([alone if v is None else v for v in values]))
            first = repeats.repeated_heads(energies, head_width, block)
            energies, copies = repeats.counted_once(energies, head_width, first), repeats.in_every_layer(first)
            if channel == "v":
                first_of.update(
                    {(stack, layer, units, head_width): row for layer, row in zip(layers, first, strict=True)}
                )
        codes = encode(energies, block) if block >= 2 else None
        start = extent[stack].first if stack in extent else min(layers)
        groups.append(
            UnitGroup(
                stack=stack,
                channel=channel,
                units=units,
                head_width=head_width,
                layers=tuple(layers),
                positions=tuple(layer - start for layer in layers),
                depth=extent[stack].depth if stack in extent else max(layers) - start + 1,
                energies=energies,
                codes=codes,
                control=self_control(energies, codes),
                copied_parts=copies,
            )
        )
    return tuple(groups), tuple(left_out)


def _repeated(stack: str, channel: str, repeated: int, experts: int) -> LeftOut:
    why = "they follow the order of others of their layer, which count once"
    return LeftOut(stack, f"{repeated} of {experts} experts", why, channel)
