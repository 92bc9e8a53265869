"""The exact tests of confirm: two reduced checkpoints against each other.

H0: the two networks were initialised independently. Initialisation is independent and identically distributed over the
dimensions of the residual stream, over the hidden units of a feed-forward and over the heads of a layer, and every
usual optimiser commutes with permuting them (Zhu et al., "Independence Tests for Language Models", ICML 2025, Theorem
1, which allows any statistic). Hence under H0:

* residual: one vector over the dimensions, shared by all layers, in blocks of 8; its order code is uniform in every
  block. Codes of layers are never added up, for they share one permutation. Several parts of a network give a vector
  each, and each is a test of its own; their sum of ranks is one more.
* hidden: units of every layer in blocks of 8; layers are independent, so their codes are added up. Layers that agree
  with each other inside a checkpoint count once, as in compare/layers.py.
* heads: the best matching of the heads of equal layers by their spectra is a uniform permutation
  (:mod:`weightprint.confirm.assignment`); layers are independent. Layers that are alike inside a checkpoint count once.

Each pays for all tests made and for the look before them (Bonferroni), so they may depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from weightprint.compare.blocks import FLOAT64, block_length, encode, order_codes
from weightprint.compare.exact import log10_tail
from weightprint.compare.holm import log10_count
from weightprint.compare.selfcontrol import self_control
from weightprint.confirm.assignment import best_matching, heads_in_place, log10_in_place, smallest_log10
from weightprint.confirm.reduction import HeadSpectra, Reduced
from weightprint.data import FLOAT32, ConfirmTest

ALL_PARTS = "all parts"
ALIKE = 0.39
"""Two layers of one checkpoint count once if their heads, matched as well as can be, lie less than this part as far
apart as any two heads of theirs do on average. The best matching, since what is asked must not depend on the order.
In the zoo's 14 independent networks (six layers of 4 or 8 heads) and their changed copies the nearest two layers lie
0.395 apart, in most 0.5 to 0.7, so that none is lost; repeated layers 0, and 0.08 and 0.15 once trained apart."""

LOG10_LOOKS = math.log10(2)
"""The ordinary comparison was a first look at the pair, for which each test of the second pays too."""


@dataclass(frozen=True)
class Made:
    """Tests, each with the Bonferroni factor of all; what could not be tested and why; names of tests that cannot reach
    the level, with the reason; and how far apart the heads of equal layers are, matched as well as can be, over the
    mean distance of any two (a figure without a p: 0.3 and more in unrelated networks that were looked at)."""

    tests: tuple[ConfirmTest, ...]
    reasons: tuple[str, ...]
    weak: Mapping[str, str] = field(default_factory=dict)
    closeness: float | None = None


def exact_tests(a: Reduced, b: Reduced, refusals: Mapping[str, str | None], level: float) -> Made:
    """Every test that the two sides allow; ``refusals`` says of "residual" and "heads" why not, if so."""
    tests: list[ConfirmTest] = []
    reasons: list[str] = []
    for name, make in (("residual", _residual), ("hidden", _hidden)):
        why = refusals.get(name)
        made, gaps = ([], [f"{name} test not made: {why}"]) if why else make(a, b)
        tests += made
        reasons += gaps
    closeness = None
    if why := refusals.get("heads"):
        reasons.append(f"heads test not made: {why}")
    else:
        layers, gap = _matched_layers(a, b)
        if gap:
            reasons.append(gap)
        else:
            tests.append(_heads(layers))
            closeness = float(np.median([apart(distances(x.figures, y.figures)) for x, y in layers]))
    number = len(tests)
    factored = tuple(replace(test, log10_factor=log10_count(number) + LOG10_LOOKS) for test in tests)
    weak = {test.name: _too_few(test) for test in factored if test.smallest_log10_p + test.log10_factor > level}
    return Made(factored, tuple(reasons), weak, closeness)


def _too_few(test: ConfirmTest) -> str:
    what = "units" if test.count is None else "heads"
    best = 10 ** min(0.0, test.smallest_log10_p + test.log10_factor)
    return (
        f"{test.name}: too few {what} to prove it, even the best agreement would have p = {best:.1g} after correction"
    )


def _residual(a: Reduced, b: Reduced) -> tuple[list[ConfirmTest], list[str]]:
    if a.width != b.width:
        return [], [f"residual test not made: the residual streams are {a.width} and {b.width} wide"]
    block = block_length(a.width, a.width)
    parts = [part for part in a.residual if part in b.residual]
    if block < 2 or not parts:
        return [], [f"residual test not made: a stream of {a.width} cannot be cut into blocks, or no part was read"]
    vectors = [(a.residual[part], b.residual[part]) for part in parts]
    if len(parts) > 1:
        parts.append(ALL_PARTS)
        logs = [[np.log(np.maximum(vector, 1e-300)) for vector in side] for side in zip(*vectors, strict=True)]
        vectors.append((np.sum(logs[0], axis=0), np.sum(logs[1], axis=0)))
    tests = []
    for part, (first, second) in zip(parts, vectors, strict=True):
        test = _one_order(f"residual: {part}", first[None], second[None], block)
        tests += [test] if test else []
    return tests, []


def _hidden(a: Reduced, b: Reduced) -> tuple[list[ConfirmTest], list[str]]:
    tests, reasons = [], []
    if not set(a.hidden) & set(b.hidden):
        reasons.append("hidden test not made: no dense feed-forward with hidden units of one number on both sides")
    for channel in a.hidden:
        if channel not in b.hidden:
            continue
        first, second = a.hidden[channel], b.hidden[channel]
        if first.shape != second.shape:
            sizes = " and ".join(f"{len(own)} layers of {own.shape[1]} units" for own in (first, second))
            reasons.append(f"hidden test of {channel} not made: {sizes}")
            continue
        block = block_length(first.shape[1], first.shape[1])
        kept, refusal = _counted_once(first, second, block)
        if refusal:
            reasons.append(f"hidden test of {channel} not made: {refusal}")
            continue
        test = _one_order(f"hidden: {channel}", first[kept], second[kept], block)
        tests += [test] if test else []
    return tests, reasons


def _counted_once(a: FLOAT32, b: FLOAT32, block: int) -> tuple[list[int], str | None]:
    """Rows of layers that are no copy of an earlier one on either side, or why the units cannot be used."""
    if block < 2:
        return [], f"{a.shape[1]} units cannot be cut into blocks of 2 to 8"
    kept = set(range(len(a)))
    for energies in (a, b):
        control = self_control(energies, encode(energies, block))
        if control.failed:
            return [], "its own layers agree in order, so that its units are not exchangeable"
        for copies in control.copies:
            kept -= set(copies[1:])
    return sorted(kept), None


def _one_order(name: str, a: FLOAT64 | FLOAT32, b: FLOAT64 | FLOAT32, block: int) -> ConfirmTest | None:
    """The order code of rows [layers, units] against each other, added up; None where every block is tied."""
    first, second = (order_codes(np.asarray(own, np.float64), block).astype(np.int64) for own in (a, b))
    valid = (first != 0).any(-1) & (second != 0).any(-1)
    blocks = int(valid.sum())
    if not blocks:
        return None
    statistic = int((first * second)[valid].sum())
    smallest = -blocks * math.log10(math.factorial(block))
    return ConfirmTest(name, statistic, blocks, None, log10_tail(statistic, blocks, block), 0.0, smallest)


def _matched_layers(a: Reduced, b: Reduced) -> tuple[list[tuple[HeadSpectra, HeadSpectra]], str | None]:
    """Layers of equal place whose heads can be matched, or why there are none."""
    if not a.spectra or not b.spectra:
        return [], "heads test not made: the width of a head is not known, or weights are missing"
    if why := a.repeated or b.repeated:
        return [], f"heads test not made: {why}"
    if len(a.layers) != len(b.layers):
        return [], f"heads test not made: {len(a.layers)} and {len(b.layers)} layers"
    of_b = {own.layer - b.layers[0]: own for own in b.spectra}
    pairs = [(own, of_b[place]) for own in a.spectra if (place := own.layer - a.layers[0]) in of_b]
    alike = [(x, y) for x, y in pairs if x.figures.shape == y.figures.shape and x.groups == y.groups]
    if not alike:
        return [], "heads test not made: heads differ in number or width"
    doubled = _repeated([x for x, _ in alike]) | _repeated([y for _, y in alike])
    return [pair for place, pair in enumerate(alike) if place not in doubled], None


def _repeated(layers: Sequence[HeadSpectra]) -> set[int]:
    """Places of layers that are like an earlier one of the same checkpoint."""
    found: set[int] = set()
    for second in range(1, len(layers)):
        for first in range(second):
            x, y = layers[first].figures, layers[second].figures
            if first not in found and x.shape == y.shape and apart(distances(x, y)) <= ALIKE:
                found.add(second)
                break
    return found


def _heads(layers: Sequence[tuple[HeadSpectra, HeadSpectra]]) -> ConfirmTest:
    shapes = [(own.groups, own.shared) for own, _ in layers]
    count = sum(
        heads_in_place(distances(x.figures, y.figures), x.groups, number) for number, (x, y) in enumerate(layers)
    )
    heads = sum(groups * shared for groups, shared in shapes)
    return ConfirmTest("heads", count, None, heads, log10_in_place(count, shapes), 0.0, smallest_log10(shapes))


def apart(cost: FLOAT64) -> float:
    """Distance of heads in their best matching, over the mean distance of any two."""
    matched = float(cost[np.arange(len(cost)), best_matching(cost)].mean())
    return matched / max(float(cost.mean()), 1e-300)


def distances(a: FLOAT64, b: FLOAT64) -> FLOAT64:
    """Squared distances of all heads, [heads, heads]."""
    return np.asarray(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0.0))
