"""Hidden units of two feed-forwards matched by their gate rows and, once more, by their up rows (phi_MATCH, Zhu et al.,
ICML 2025): in related networks both find the same partner, wherever units were moved to.

A figure and no proof: whether the two matchings agree does not change when units are permuted, so exchangeability says
nothing about it, and its p-value would rest on the assumption that the two are independent under the null hypothesis.
Each unit takes its nearest partner by cosine; a bijection, as in the paper, would cost O(n^3) and change little. Needs
the same basis of the residual stream on both sides: after a rotation or permutation of it nothing agrees.

Products in tiles; at most two matrices of either side are held. Where all layers would take too long, evenly spaced
ones are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightprint.confirm.anatomy import Anatomy
from weightprint.confirm.reduction import feed_forward_weights
from weightprint.data import UnitMatching

if TYPE_CHECKING:
    from torch import Tensor

MOST_UNITS = 2**14
MULTIPLICATIONS = {"cpu": 2e12, "cuda": 2e15}
"""What all layers together may take: about a minute."""

_ROWS = 2**11


def match_units(a: Anatomy, b: Anatomy, device: str) -> UnitMatching | str:
    """How many hidden units find the same partner by gate and by up, or why it was not counted; raises CheckpointError
    if weights cannot be read."""
    if a.width != b.width or len(a.layers) != len(b.layers):
        return "units not matched: the residual streams or the depths differ"
    used = units = agreeing = 0
    for place in _places(a, device):
        sides = [
            feed_forward_weights(own.layers[place], own.width, device, ("gate", "up", "gate_up")) for own in (a, b)
        ]
        if any(not {"gate", "up"} <= side.keys() for side in sides):
            continue
        first, second = sides
        if len({own[role].shape for own in sides for role in ("gate", "up")}) > 1:
            continue
        if len(first["gate"]) > MOST_UNITS:
            return f"units not matched: {len(first['gate'])} hidden units, {MOST_UNITS} at most"
        same = _nearest(first["gate"], second["gate"]) == _nearest(first["up"], second["up"])
        used, units, agreeing = used + 1, units + len(first["gate"]), agreeing + int(same.sum())
    if not used:
        return "units not matched: no dense feed-forward with gate and up on both sides"
    return UnitMatching(used, units, agreeing)


def _places(anatomy: Anatomy, device: str) -> list[int]:
    """Layers that can be matched in time, evenly spaced."""
    number = len(anatomy.layers)
    hidden = max((max(s.shape) for parts in anatomy.layers for s in parts.feed_forward.values()), default=0)
    each = 2.0 * min(hidden, MOST_UNITS) ** 2 * anatomy.width
    fitting = number if not each else max(1, min(number, int(MULTIPLICATIONS[device] / each)))
    return sorted(set(np.linspace(0, number - 1, fitting).round().astype(int).tolist()))


def _nearest(first: Tensor, second: Tensor) -> Tensor:
    """Of each row of ``first`` the row of ``second`` with the largest cosine, int64 [rows]."""
    import torch

    one, other = (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30) for rows in (first, second))
    tiles = (one[start : start + _ROWS] @ other.T for start in range(0, len(one), _ROWS))
    return torch.cat([tile.argmax(dim=1) for tile in tiles])
