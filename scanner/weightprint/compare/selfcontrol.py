"""Self-control: inside one checkpoint the layers are independent, so their own z_ij (i != j) must look standard normal.

A channel whose units are not exchangeable (rotary order, a matrix read transposed) shows as z_ij above zero nearly
everywhere; measured cases have means of 2.3 to 17. Copied layers show as a few huge z_ij on a clean background. The
median tells the two apart: it ignores the few. Layers with the same bits count once before it is taken. Blocks that
reach across heads would widen z_ij without moving it; block_length makes none, so that is not looked for.

Threshold. The mean of z_ij over the n = L(L-1)/2 pairs is, with U the sum of the L standardised code vectors of
d = m(b-1) free dimensions, (|U|^2 - Ld) / (L(L-1) sqrt(d)), and |U|^2 / L is close to chi-square with d degrees of
freedom: sub-gamma with variance 2/(L-1)^2 and scale c = 2/((L-1) sqrt(d)) (Laurent and Massart 2000, Lemma 1). The
median of normal variables is their mean plus uncorrelated noise of variance (pi/2 - 1)/n. Together, with v the sum
of the variances, P(median > sqrt(2vx) + cx) <= e^-x; x = 12.2 makes it 5e-6. That is exact only as L and m grow; a
simulation in the tests holds it to account. A strong dependence needs about six layers to be seen: with two or
three the median has little power, and copies cannot be told from a common order. Both then count as one layer.

Parts of a layer (heads, experts) are independent of each other as well, and may be copies too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from weightprint.compare.blocks import BOOL, INT64, Codes, encode, products, standardised
from weightprint.compare.exact import critical, log10_tail
from weightprint.data import FLOAT32

_EXPONENT = 12.2  # e^-12.2 = 5e-6
COPY_LOG10_P = -9.0  # of a pair of layers, before Bonferroni over the checkpoint's pairs


@dataclass(frozen=True)
class SelfControl:
    """``cluster`` gives layers the same number when they are copies of each other. ``copies`` lists the clusters with
    more than one layer, as row numbers. ``median`` is nan where there is no pair of layers to look at."""

    median: float
    threshold: float
    pairs: int
    cluster: tuple[int, ...]
    copies: tuple[tuple[int, ...], ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the layers agree with each other too much for the channel to be used."""
        return self.pairs > 0 and self.median > self.threshold


def self_control(energies: FLOAT32, codes: Codes | None) -> SelfControl:
    """Look at the layers of one group of one checkpoint: energies [layers, units] and their codes."""
    same = _bit_identical(energies)
    if codes is None:
        return SelfControl(math.nan, math.inf, 0, same, _clusters(same))
    distinct = np.array(sorted(set(same)))
    kept = Codes(codes.block, codes.values[distinct], codes.valid[distinct], codes.all_valid)
    statistic, counts = products(kept, kept)
    pairs = np.triu(counts > 0, 1)
    number = int(pairs.sum())
    if number == 0:
        return SelfControl(math.nan, math.inf, 0, same, _clusters(same))
    z = standardised(statistic, counts, codes.block)
    limit = threshold(len(distinct), int(np.median(counts[pairs])) * (codes.block - 1))
    edges = significant(statistic, counts, pairs, codes.block, COPY_LOG10_P - math.log10(number))
    joined = _join(same, [(int(distinct[i]), int(distinct[j])) for i, j in np.argwhere(edges)])
    return SelfControl(float(np.median(z[pairs])), limit, number, joined, _clusters(joined))


def copied_parts(energies: FLOAT32, width: int, block: int) -> tuple[tuple[int, ...], ...]:
    """Parts of ``width`` units that are copies of each other in every layer of energies [layers, units], by number:
    heads that were repeated for several groups, experts made of one block. Their order is compared over all layers at
    once, so that narrow heads are told too."""
    layers, units = energies.shape
    parts = units // width
    turned = energies.reshape(layers, parts, width).transpose(1, 0, 2).reshape(parts, layers * width)
    codes = encode(turned, block)
    statistic, counts = products(codes, codes)
    pairs = np.triu(counts > 0, 1)
    number = int(pairs.sum())
    if number == 0:
        return ()
    edges = significant(statistic, counts, pairs, block, COPY_LOG10_P - math.log10(number))
    return _clusters(_join(tuple(range(parts)), [(int(i), int(j)) for i, j in np.argwhere(edges)]))


def threshold(layers: int, dimensions: int) -> float:
    """What the median of z_ij over independent layers exceeds with probability 5e-6."""
    variance = 2 / (layers - 1) ** 2 + (math.pi / 2 - 1) * 2 / (layers * (layers - 1))
    scale = 2 / ((layers - 1) * math.sqrt(dimensions))
    return math.sqrt(2 * variance * _EXPONENT) + scale * _EXPONENT


def significant(statistic: INT64, counts: INT64, where: BOOL, block: int, log10_p: float) -> BOOL:
    """Which entries ``where`` have an exact p at or below ``log10_p``; one or two exact p-values per block count."""
    found = np.zeros(statistic.shape, bool)
    for blocks in np.unique(counts[where]):
        here = where & (counts == blocks)
        if log10_tail(int(statistic[here].max()), int(blocks), block) <= log10_p < 0:
            found |= here & (statistic >= critical(log10_p, int(blocks), block))
    return found


def _bit_identical(energies: FLOAT32) -> tuple[int, ...]:
    first: dict[bytes, int] = {}
    return tuple(first.setdefault(row.tobytes(), number) for number, row in enumerate(energies))


def _join(labels: tuple[int, ...], edges: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    joined = list(labels)
    for a, b in edges:
        low, high = sorted((joined[a], joined[b]))
        joined = [low if label == high else label for label in joined]
    return tuple(joined)


def _clusters(labels: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    return tuple(tuple(rows) for rows in members.values() if len(rows) > 1)
