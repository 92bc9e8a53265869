"""Which unit energies of a fingerprint may be tested: one for every unit that can be permuted on its own.

Rows of V are such units. Columns of O are where every query head has its own value head. Where several query heads
share one (grouped-query attention), the columns that read the same row of V can only be permuted together, and training
moves their energies together with that row's in every network, related or not. Counted one by one they would bring the
same order several times and make p too small (docs/decisions/0001); so they are pooled, one unit per row of V. How many
heads share follows from the shapes; which columns belong together needs the head's width. Where V itself was not read,
as where layers use another layer's values or their own keys, nothing says which columns move together: they are left
out, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from weightprint.data import FLOAT32, Fingerprint, MatrixStats

EnergyKey = tuple[str, int, str]


@dataclass(frozen=True)
class LeftOut:
    """Energies of one channel of one stack that take no part, in which layers, and why."""

    stack: str
    layers: str
    why: str
    channel: str = "o"

    def sentence(self, name: str) -> str:
        """What a report says of it, of the checkpoint of this name."""
        return f"channel {self.channel} of {self.stack} in {name} is not used in {self.layers}: {self.why}"


@dataclass(frozen=True)
class Units:
    """Energies by (stack, layer, channel), float32 [units]; and what of each stack stays out."""

    energies: Mapping[EnergyKey, FLOAT32]
    left_out: tuple[LeftOut, ...]


def exchangeable_units(fingerprint: Fingerprint) -> Units:
    """The energies of ``fingerprint``, those of O's columns pooled over the query heads that share a value head."""
    matrices = {(matrix.stack, matrix.layer, matrix.role): matrix for matrix in fingerprint.matrices}
    energies: dict[EnergyKey, FLOAT32] = {}
    reasons: dict[tuple[str, str], list[int]] = {}
    for key, own in fingerprint.energies.items():
        stack, layer, channel = key
        pooled = _pooled(own, stack, layer, matrices) if channel == "o" else own
        if isinstance(pooled, str):
            reasons.setdefault((stack, pooled), []).append(layer)
        else:
            energies[key] = pooled
    left_out = tuple(LeftOut(stack, _layers(layers), why) for (stack, why), layers in sorted(reasons.items()))
    return Units(energies, left_out)


def _pooled(
    columns: FLOAT32, stack: str, layer: int, matrices: Mapping[tuple[str, int, str], MatrixStats]
) -> FLOAT32 | str:
    """Energies of O's columns as units of their own, or why there are none."""
    value = matrices.get((stack, layer, "v"))
    if value is None:
        # Latent attention expands values for each query head.
        latent = (stack, layer, "kv_b") in matrices
        return columns if latent else "its values were not read, so which columns move together is not known"
    rows = value.shape[0]
    if rows == len(columns):
        return columns
    shared, rest = divmod(len(columns), rows)
    if rest or shared < 1:
        return f"its {len(columns)} columns are no multiple of the {rows} rows of V"
    width = value.head_width
    if width is None or rows % width:
        return f"{shared} query heads share a value head, and no config says how wide a head is"
    heads = columns.astype(np.float64).reshape(rows // width, shared, width)
    pooled: FLOAT32 = heads.sum(axis=1).reshape(rows).astype(np.float32)
    return pooled


def _layers(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
