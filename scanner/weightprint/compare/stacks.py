"""Stacks of a fingerprint and their curves of standard deviations over the layers; which stack meets which.

Two files of one model may name a stack with and without a prefix ("bert.encoder.layer", "encoder.layer"), so names
correspond when they are equal or one ends in a dot and the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.data import ATTENTION_ROLES, Fingerprint

CURVE_ROLES = ("q", "k", "v", "o")


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
    """Curve of each (stack, role); a matrix without a finite standard deviation is a hole."""
    first = {stack.name: stack.first for stack in stacks}
    points: dict[tuple[str, str], dict[int, float]] = {}
    for matrix in fingerprint.matrices:
        if matrix.role in CURVE_ROLES and math.isfinite(matrix.std):
            own = points.setdefault((matrix.stack, matrix.role), {})
            own[matrix.layer - first[matrix.stack]] = matrix.std
    return {
        key: Curve(tuple(sorted(own)), np.array([own[position] for position in sorted(own)]))
        for key, own in points.items()
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
