"""Heads that repeat others of their layer count once, or T would be taken for more independent blocks than it has.

Key-value heads are repeated where grouped-query attention was written out for every query head. Such a file holds the
same rows of V several times, and the columns of O that read equal rows move together as those of one group do
(docs/decisions/0001). So of heads with the same energies only the first counts, in V; in O the energies of their
columns are added up. Told are heads whose energies are equal to the bit, layer by layer; and heads whose order agrees
over all layers at once (:func:`weightprint.compare.selfcontrol.copied_parts`), as it does where repeated heads were
trained on.
What is not told: heads that were repeated in a few layers and then trained on. Parts so narrow in so few layers that
a repetition could not be told are not matched all at once (heads.py).
"""

from __future__ import annotations

import numpy as np

from weightprint.compare.blocks import INT64
from weightprint.compare.selfcontrol import copied_parts
from weightprint.data import FLOAT32


def repeated_heads(energies: FLOAT32, width: int, block: int) -> INT64:
    """For each head of ``width`` units of energies [layers, units] the first of its layer that it repeats, its own
    number if none: int64 [layers, heads]."""
    layers, units = energies.shape
    heads = energies.reshape(layers, units // width, width)
    first = np.tile(np.arange(units // width), (layers, 1))
    # Equal heads have equal first units, which are sorted faster than whole heads are compared.
    begins = np.sort(heads[:, :, 0], axis=1)
    for layer in np.flatnonzero((begins[:, 1:] == begins[:, :-1]).any(axis=1)).tolist():
        seen: dict[bytes, int] = {}
        first[layer] = [seen.setdefault(head.tobytes(), number) for number, head in enumerate(heads[layer])]
    for group in copied_parts(energies, width, block):
        for layer in range(layers):
            same = first[layer, list(group)]
            first[layer, np.isin(first[layer], same)] = same.min()
    return first


def counted_once(energies: FLOAT32, width: int, first: INT64) -> FLOAT32:
    """Energies [layers, units] with nan in place of heads that repeat another one."""
    heads = energies.reshape(len(energies), -1, width)
    repeated = first != np.arange(first.shape[1])
    return np.where(repeated[:, :, None], np.float32(np.nan), heads).reshape(energies.shape)


def added_up(energies: FLOAT32, width: int, first: INT64) -> FLOAT32:
    """Energies [layers, units] of O's columns, those that read repeated heads added to those that read the first."""
    heads = energies.reshape(len(energies), -1, width).astype(np.float64)
    total = np.zeros_like(heads)
    np.add.at(total, (np.arange(len(heads))[:, None], first), heads)
    return counted_once(total.reshape(energies.shape).astype(np.float32), width, first)


def in_every_layer(first: INT64) -> tuple[tuple[int, ...], ...]:
    """Heads that are copies of each other in every layer, as numbers."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for head in range(first.shape[1]):
        sets.setdefault(tuple(first[:, head].tolist()), []).append(head)
    return tuple(tuple(heads) for heads in sets.values() if len(heads) > 1)
