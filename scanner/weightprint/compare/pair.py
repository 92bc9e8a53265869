"""Two fingerprints against each other: tests, screen, layer map, and what is already known of the verdict.

The verdict here is preliminary: "identical" or "re-encoded" where the statistics say so, "not-comparable" where no
test could be made, else "no-evidence". :func:`weightprint.compare.judge` turns it into the final word, which takes
every pair of a report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from weightprint.compare.blocks import INT64
from weightprint.compare.bulk import compare_collection
from weightprint.compare.comparisons import Comparisons
from weightprint.compare.invariants import agreement_of_pair
from weightprint.compare.layers import MAP_LOG10_ALPHA, order_tests
from weightprint.compare.packed import Label, Packed, ShapeClass, classes_of, join, label, pack
from weightprint.compare.prepared import Prepared, prepare
from weightprint.compare.products import product_for
from weightprint.compare.sameness import Matched, bit_equal, common, matched, within_rounding
from weightprint.compare.screen import screen_pair
from weightprint.data import ATTENTION_ROLES, Comparison, Fingerprint, Screen

_KINDS = {True: "attention", False: "feed-forward blocks"}  # by whether a role is one of attention

KEPT = 256  # fingerprints that are kept ready for comparisons one by one


def compare_pair(a: Fingerprint | Prepared, b: Fingerprint | Prepared) -> Comparison:
    """Compare two fingerprints; the verdict is preliminary."""
    first = a if isinstance(a, Prepared) else prepare(a)
    second = b if isinstance(b, Prepared) else prepare(b)
    names = (first.fingerprint.name, second.fingerprint.name)
    unread = tuple(
        f"{side.fingerprint.name} could not be read: {side.fingerprint.reason or 'it holds no attention matrix'}"
        for side in (first, second)
        if side.fingerprint.status == "failed" or not side.fingerprint.matrices
    )
    if unread:
        return Comparison(*names, "not-comparable", None, None, (), Screen(None), (), unread)
    evidence = order_tests(first, second)
    screen, gaps = screen_pair(first, second)
    word, why = _sameness(first, second, evidence.pair_log10_p)
    partial = tuple(
        f"{side.fingerprint.name} is {side.fingerprint.status}: {side.fingerprint.reason}"
        for side in (first, second)
        if side.fingerprint.status != "complete"
    )
    reasons = (*why, *evidence.reasons, *gaps, *partial)
    smallest = evidence.pair_log10_p
    own = Comparison(*names, word, smallest, smallest, evidence.tests, screen, evidence.layer_map, reasons)
    return replace(own, head_map=evidence.head_map, agreement=agreement_of_pair(first, second))


def compare_all(
    fingerprints: Sequence[Fingerprint], pairs: Sequence[tuple[int, int]] | INT64, device: str = "cpu"
) -> Comparisons:
    """Compare the named pairs of ``fingerprints`` in bulk, each as :func:`compare_pair` does.

    ``device`` is where the products are computed: "cpu", or a device of torch ("cuda").
    """
    wanted = np.asarray(pairs, np.int64).reshape(-1, 2)
    nobody = Label("", "", None, ())  # of a fingerprint in no pair
    numbers = np.unique(wanted).tolist()
    labels, classes = packed_sides((number, fingerprints[number]) for number in numbers)
    collection = join([labels.get(number, nobody) for number in range(len(fingerprints))], classes)
    load = lru_cache(maxsize=KEPT)(lambda number: prepare(fingerprints[number]))
    return compare_collection(collection, wanted, load, compare_pair, product_for(device, len(wanted)))


def packed_sides(fingerprints: Iterable[tuple[int, Fingerprint]]) -> tuple[dict[int, Label], list[ShapeClass]]:
    """Labels of fingerprints, given with their numbers, and the classes of those that are regular; each is prepared
    once and let go."""
    labels: dict[int, Label] = {}
    packed: list[tuple[int, Packed]] = []
    for number, fingerprint in fingerprints:
        prepared = prepare(fingerprint)
        labels[number] = label(prepared)
        if (one := pack(prepared)) is not None:
            packed.append((number, one))
    return labels, classes_of(packed)


def _sameness(first: Prepared, second: Prepared, pair_log10_p: float | None) -> tuple[str, tuple[str, ...]]:
    nothing = ("not-comparable" if pair_log10_p is None else "no-evidence", ())
    linked = pair_log10_p is not None and pair_log10_p <= MAP_LOG10_ALPHA
    if not linked and first.deviations != second.deviations:
        return nothing
    a, b, alone = common(first.fingerprint, second.fingerprint)
    pairs = matched(a, b)
    if pairs is None or not _covered(a, b) or all(math.isnan(m.mean) for m, _ in pairs):
        return nothing
    formats = " and ".join(sorted({dtype for m, n in pairs for dtype in (m.dtype, n.dtype)}))
    recast = any(m.dtype != n.dtype for m, n in pairs)
    if bit_equal(a, b, pairs) and not (recast and linked):
        return "identical", (_identical(pairs, _kinds(first, second, pairs), formats), *alone)
    if linked and within_rounding(a, b, pairs):
        how = f"stored as {formats}" if recast else f"both stored as {formats}"
        what = f"standard deviations and unit energies of {len(pairs)} matrices ({_kinds(first, second, pairs)})"
        why = f"{what} agree within the rounding of storage ({how})"
        return "re-encoded", ("; ".join((why, *alone)),)
    return nothing


def _identical(pairs: Sequence[Matched], kinds: str, formats: str) -> str:
    return f"every stored statistic of {len(pairs)} matrices ({kinds}) is equal to the last bit (stored as {formats})"


def _kinds(first: Prepared, second: Prepared, pairs: Sequence[Matched]) -> str:
    """Which matrices are spoken of, and that nothing else was read where that is so."""
    of_attention = {m.role in ATTENTION_ROLES for m, _ in pairs}
    kinds = " and ".join(name for own, name in _KINDS.items() if own in of_attention)
    read = [side.fingerprint.feed_forward for side in (first, second)]
    return f"{kinds}; nothing else was read" if read == [None, None] else kinds


def _covered(a: Fingerprint, b: Fingerprint) -> bool:
    if _blocks(a) != _blocks(b):
        return False
    return (a.coverage.found, a.coverage.understood) == (b.coverage.found, b.coverage.understood)


def _blocks(fingerprint: Fingerprint) -> tuple[int, int] | None:
    blocks = fingerprint.feed_forward
    return None if blocks is None else (blocks.found, blocks.understood)
