"""Experts of one layer that follow one order count once, or T would be taken for more independent blocks than it has.

A mixture of experts that was made out of a dense block holds the same units several times. Where both sides of a pair
were made so, of blocks that have nothing to do with each other, every expert brings the same block products again: the
variance of T is larger than the exact law says by as much as there are experts. So each checkpoint keeps one of every
set of experts that agree in order, by itself and before it is compared; the others' units are left out. Then all
that is left on one side can be permuted independently, whatever the other side looks like, and p is exact.

Experts agree if the self-control says so: of two, or of nearly all of a layer (its median is small for many experts),
looked at layer by layer and in all layers at once, where a weak dependence adds up. What costs: of experts made
out of one block only one is tested.
"""

from __future__ import annotations

import numpy as np

from weightprint.compare.blocks import BOOL, block_length, encode
from weightprint.compare.selfcontrol import self_control
from weightprint.data import FLOAT32


def counted_once(energies: FLOAT32, width: int) -> tuple[FLOAT32, int]:
    """``energies`` [layers, units] of experts of ``width`` units each, with nan for experts that repeat the order of an
    earlier one of their layer; and how many experts of all layers these are."""
    layers, units = energies.shape
    experts, rest = divmod(units, width)
    block = block_length(units, width)
    if experts < 2 or rest or block < 2:
        return energies, 0
    parts = energies.reshape(layers, experts, width)
    together = _repeated(np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(experts, -1), block)
    if together.sum() == experts - 1:  # of nothing more can be said layer by layer
        repeated = np.tile(together, (layers, 1))
    else:
        repeated = np.stack([_repeated(own, block) | together for own in parts])
    if not repeated.any():
        return energies, 0
    kept = np.where(repeated[:, :, None], np.float32(np.nan), parts).reshape(energies.shape)
    return kept, int(repeated.sum())


def _repeated(parts: FLOAT32, block: int) -> BOOL:
    """Which rows [experts, units] repeat an earlier one."""
    control = self_control(parts, encode(parts, block))
    if control.failed:
        return np.arange(len(parts)) > 0
    return np.array([cluster != number for number, cluster in enumerate(control.cluster)])
