"""What merges are looked for in: unit energies and means of a few checkpoints of one shape, as inner products by layer.

Every statistic of a triple is a function of the inner products of three vectors, and leaving one layer out is a
subtraction; so all triples of a neighbourhood are looked at in one array operation. Two kinds of vectors:

* energies: Σ w² of the units of V and O, each layer divided by its mean energy in the origin and centred, so that what
  a whole layer gained or lost says nothing;
* means: the mean of every matrix over the deviation that storage rounding explains. The mean is linear in the weights:
  a linear merge has exactly the merged means, up to the rounding of its own storage.

Given up: members of another shape, members that are not complete. Shapes: products float64 [layers, n + 1, n + 1] of n
members and, last, the checkpoint in question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.compare.prepared import Prepared
from weightprint.compare.sameness import FORMATS
from weightprint.data import MatrixStats

MEAN_FLOOR = 1e-6
"""The accuracy that is promised of a mean, in standard deviations."""

COARSEST = FORMATS["f8_e5m2"]

ShapeKey = tuple[object, ...]


@dataclass(frozen=True)
class Products:
    """Inner products of the vectors by layer: ``energies`` and ``means`` [layers, n + 1, n + 1], the checkpoint
    in question last; ``matrices`` and ``units`` how many means and energies there are."""

    energies: FLOAT64
    means: FLOAT64
    matrices: int
    units: int


def shape_key(side: Prepared) -> ShapeKey | None:
    """What two checkpoints must share to be held against each other unit by unit; None where something is missing."""
    fingerprint = side.fingerprint
    if fingerprint.status != "complete" or not side.groups:
        return None
    if not all(math.isfinite(m.mean) and m.std > 0 and math.isfinite(m.std) for m in fingerprint.matrices):
        return None
    if not all(np.isfinite(group.energies).all() for group in side.groups):
        return None
    ordinal = _ordinals(side)
    groups = tuple((ordinal[g.stack], g.channel, g.units, g.positions, g.head_width) for g in side.groups)
    return (groups, tuple((ordinal[m.stack], m.role, m.shape) for m in _sorted(side)))


def products(middle: Prepared, members: Sequence[Prepared]) -> Products:
    """Inner products of ``members`` and ``middle``, all of one shape, in units of ``middle``."""
    sides = (*members, middle)
    places = sorted({(group.stack, position) for group in middle.groups for position in group.positions})
    layer_of = {place: number for number, place in enumerate(places)}
    energies = np.zeros((len(places), len(sides), len(sides)))
    for number, own in enumerate(middle.groups):
        scale = own.energies.astype(np.float64).mean(axis=1, keepdims=True)
        scale[scale == 0] = 1
        vectors = np.stack([_centred(side.groups[number].energies / scale) for side in sides])
        rows = [layer_of[own.stack, position] for position in own.positions]
        np.add.at(energies, rows, np.matmul(by_layer := vectors.transpose(1, 0, 2), by_layer.transpose(0, 2, 1)))
    matrices = _sorted(middle)
    noise = np.array([rounding_of_mean(matrix) for matrix in matrices])
    means = np.array([[matrix.mean for matrix in _sorted(side)] for side in sides]) / noise
    own_layers = [(matrix.stack, matrix.layer) for matrix in matrices]
    chosen = [[at for at, own in enumerate(own_layers) if own == layer] for layer in sorted(set(own_layers))]
    by_layer_means = np.stack([means[:, at] @ means[:, at].T for at in chosen])
    return Products(energies, by_layer_means, len(matrices), sum(group.energies.size for group in middle.groups))


def about(layers: FLOAT64, origin: int) -> FLOAT64:
    """The products [layers, n, n] of the differences from one of the vectors."""
    column, row = layers[:, :, origin, None], layers[:, origin, None, :]
    return np.asarray(layers - column - row + layers[:, origin, origin, None, None])


def rounding_of_mean(matrix: MatrixStats) -> float:
    """Standard deviation of what storage rounding adds to the mean of a matrix, at most: the rounding model of
    :mod:`weightprint.compare.sameness`, and the accuracy of the mean itself."""
    roundoff, step = (max(figures) for figures in zip(*map(_format, matrix.dtype.split("+")), strict=True))
    square = matrix.mean**2 + matrix.std**2
    variance = (roundoff**2 * square / 3 + step**2 / 12) / max(matrix.count, 1)
    return math.sqrt(variance) + MEAN_FLOOR * matrix.std


def _format(dtype: str) -> tuple[float, float]:
    return FORMATS.get(dtype, COARSEST)


def _ordinals(side: Prepared) -> dict[str, int]:
    """Stacks by number: two files of one model may name them with and without a prefix."""
    names = {matrix.stack for matrix in side.fingerprint.matrices} | {group.stack for group in side.groups}
    return {name: number for number, name in enumerate(sorted(names))}


def _sorted(side: Prepared) -> list[MatrixStats]:
    return sorted(side.fingerprint.matrices, key=lambda matrix: (matrix.stack, matrix.layer, matrix.role))


def _centred(energies: FLOAT64) -> FLOAT64:
    rows = np.asarray(energies, np.float64)
    return np.asarray(rows - rows.mean(axis=-1, keepdims=True))
