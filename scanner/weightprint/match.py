"""Fingerprints in memory and in the index against each other: in bulk, and every finding from the files themselves.

What the index lets pass is decided by its figures. Whatever would be a finding, by p or by score, is compared again
from the fingerprint files. A segment whose codes do not add up, or are of another file than is there now, is removed
if it can be, and its fingerprints are read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from weightprint.compare import WORDS, compare_pair, judge, prepare
from weightprint.compare.blocks import INT64
from weightprint.compare.bulk import compare_collection
from weightprint.compare.layers import MAP_LOG10_ALPHA
from weightprint.compare.packed import DamagedCodes, Label, join
from weightprint.compare.pair import KEPT, packed_sides
from weightprint.compare.prepared import Prepared
from weightprint.compare.products import product_for
from weightprint.compare.verdict import Judged
from weightprint.data import Fingerprint
from weightprint.index import Stored, checked, discard, ready_classes, stored_of, whole

_SIMILAR = WORDS.index("similar-profile")


def match(
    fingerprints: Sequence[Fingerprint], pairs: INT64, alpha: float, device: str = "cpu", lost: int = 0
) -> Judged:
    """Compare and judge ``pairs`` int64 [pairs, 2] of ``fingerprints``, of the index or not; raises StoreError if a
    file of the index is gone that something is found in. ``lost`` pairs more count as tested."""
    damaged: set[Path] = set()
    while True:
        try:
            return _match(fingerprints, pairs, alpha, lost, device, damaged)
        except DamagedCodes as error:
            damaged.add(Path(error.source))
            discard(Path(error.source))


def _match(
    fingerprints: Sequence[Fingerprint],
    pairs: INT64,
    alpha: float,
    lost: int,
    device: str,
    damaged: Collection[Path],
) -> Judged:
    sources = [_usable(stored_of(fingerprint), damaged) for fingerprint in fingerprints]
    labels, classes = packed_sides((n, whole(f)) for n, f in enumerate(fingerprints) if sources[n] is None)
    collection = join(
        [
            labels[number] if source is None else Label(own.name, own.status, own.reason, source.entry.unused)
            for number, (own, source) in enumerate(zip(fingerprints, sources, strict=True))
        ],
        [*classes, *ready_classes(sources)],
    )

    @lru_cache(maxsize=KEPT)
    def load(number: int) -> Prepared:
        own = fingerprints[number]
        return prepare(whole(own) if sources[number] is None else checked(own))

    limit = max(MAP_LOG10_ALPHA, math.log10(alpha))
    found = compare_collection(collection, pairs, load, compare_pair, product_for(device, len(pairs)), limit)
    of_index = np.array([source is not None for source in sources], bool)[pairs].any(axis=1)
    while True:
        judged = judge(found, alpha, lost)
        high = np.flatnonzero(of_index & (judged.figures.words == _SIMILAR))
        again = sorted(set(high.tolist()) - set(found.made_one_by_one))
        if not again:
            return judged
        found = found.replaced({n: compare_pair(load(int(pairs[n, 0])), load(int(pairs[n, 1]))) for n in again})


def _usable(stored: Stored | None, damaged: Collection[Path]) -> Stored | None:
    return None if stored is None or stored.segment.path in damaged else stored
