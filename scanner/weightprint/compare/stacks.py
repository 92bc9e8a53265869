"""Stacks of a fingerprint and their curves of standard deviations over the layers; which stack meets which.

Two files of one model may name a stack with and without a prefix ("bert.encoder.layer", "encoder.layer"), so names
correspond when they are equal or one ends in a dot and the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.data import ATTENTION_ROLES, FEED_FORWARD_ROLES, FLOAT32, Fingerprint

CURVE_ROLES = ("q", "k", "v", "o")
"""Roles of the curves that the screen looks at."""

UNITS = "units"
"""Role of a curve that only invariants look at (:func:`unit_curves`)."""

LARGEST_LOG = 600.0  # of an energy that can be kept as a float64


@dataclass(frozen=True)
class Stack:
    """Extent of one stack over all roles of its kind."""

    name: str
    first: int
    depth: int
    layers: int
    elements: int


@dataclass(frozen=True)
class Curve:
    """Standard deviations of one role by position in the stack, in order of position."""

    positions: tuple[int, ...]
    values: FLOAT64


def stacks_of(fingerprint: Fingerprint, roles: Collection[str] = ATTENTION_ROLES) -> tuple[Stack, ...]:
    """The stacks of matrices of these ``roles``, largest first: most layers, then most elements, then by name."""
    layers: dict[str, set[int]] = {}
    elements: dict[str, int] = {}
    for matrix in fingerprint.matrices:
        if matrix.role not in roles:
            continue
        layers.setdefault(matrix.stack, set()).add(matrix.layer)
        elements[matrix.stack] = elements.get(matrix.stack, 0) + matrix.count
    stacks = [Stack(name, min(own), max(own) - min(own) + 1, len(own), elements[name]) for name, own in layers.items()]
    return tuple(sorted(stacks, key=lambda stack: (-stack.layers, -stack.elements, stack.name)))


def curves_of(fingerprint: Fingerprint, stacks: Sequence[Stack]) -> dict[tuple[str, str], Curve]:
    """Curve of each (stack, role), of attention and of the feed-forward blocks beside it; a matrix without a finite
    standard deviation is a hole."""
    first = {stack.name: stack.first for stack in stacks}
    points: dict[tuple[str, str], dict[int, float]] = {}
    for matrix in fingerprint.matrices:
        known = matrix.role in (*CURVE_ROLES, *FEED_FORWARD_ROLES) and matrix.stack in first
        if known and math.isfinite(matrix.std):
            own = points.setdefault((matrix.stack, matrix.role), {})
            own[matrix.layer - first[matrix.stack]] = matrix.std
    return {
        key: Curve(tuple(sorted(own)), np.array([own[position] for position in sorted(own)]))
        for key, own in points.items()
    }


def unit_curves(
    energies: Mapping[tuple[str, int, str], FLOAT32], stacks: Sequence[Stack]
) -> dict[tuple[str, str], Curve]:
    """Curve of role UNITS of each stack: the geometric mean, over its units, of the energy of a row of V times that of
    the columns of O that read it, float32 [units] each. Neither the order of units and heads nor any scale that V
    gains and O loses changes it. A layer without both, or with a unit of no or no finite energy, is a hole."""
    points: dict[str, dict[int, float]] = {}
    first = {stack.name: stack.first for stack in stacks}
    for (stack, layer, channel), values in energies.items():
        other = energies.get((stack, layer, "o"))
        if channel == "v" and other is not None and len(other) == len(values) and stack in first:
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = float((np.log(values.astype(np.float64)) + np.log(other.astype(np.float64))).mean())
            if math.isfinite(mean) and abs(mean) < LARGEST_LOG:
                points.setdefault(stack, {})[layer - first[stack]] = math.exp(mean)
    return {
        (stack, UNITS): Curve(tuple(sorted(own)), np.array([own[position] for position in sorted(own)]))
        for stack, own in points.items()
    }


def correspond(a: str, b: str) -> bool:
    """Whether two stack names are the same up to a prefix."""
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")


def match_stacks(a: Sequence[str], b: Sequence[str]) -> dict[str, str] | None:
    """Stack names of ``a`` onto those of ``b``, one to one; None if they do not all correspond."""
    if len(a) != len(b):
        return None
    matched: dict[str, str] = {}
    free = set(b)
    for name in sorted(a, key=lambda name: name not in free):  # namesakes first
        other = name if name in free else next((o for o in sorted(free) if correspond(name, o)), None)
        if other is None:
            return None
        matched[name] = other
        free.discard(other)
    return matched
