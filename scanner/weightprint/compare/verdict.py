"""From the comparisons of a report to their final words: Holm over all pairs tested, background of the screen, reasons.

Order of the words: identical, re-encoded, shared-origin, similar-profile, no-evidence, not-comparable. A p-value alone
makes shared-origin; the screen alone, or curves that laundering keeps (:mod:`weightprint.compare.invariants`), make
similar-profile, which is no evidence.

Background of a pair's score: the scores of the report's other pairs that no evidence links, neither directly nor
through a family. The score is called high when at least 95 % of 20 or more such pairs lie below it and it is at least
0.8. With fewer, no score is called high: unrelated models of one recipe reach 0.9 and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import BOOL, FLOAT64, INT64
from weightprint.compare.comparisons import WORDS, Comparisons, Figures, LazyComparisons, figures_of
from weightprint.compare.families import components
from weightprint.compare.holm import holm_of
from weightprint.compare.invariants import flagged, sentence
from weightprint.compare.packed import Label
from weightprint.data import Comparison, Screen

ALPHA = 1e-6
BACKGROUND_ENOUGH = 20
HIGH_PERCENTILE = 95.0
HIGH_SCORE = 0.8

NOT_REJECTED = "independent initialisation is not rejected at"
"""How the reason of pairs begins whose order of units says nothing."""

SAME_SEED = (
    "this holds for parent, child, sibling and cousin alike and does not say who derived from whom; two trainings "
    "from scratch with the same code and random seed share their initialisation too"
)


@dataclass(frozen=True)
class _Report:
    """What a pair's word depends on beside the pair: the level, how many pairs were tested."""

    alpha: float
    tested: int


@dataclass(frozen=True)
class _Background:
    """Of each pair's score: how many scores it is held against, and its percentile among them, nan without any."""

    pairs: INT64
    percentiles: FLOAT64


class Judged(LazyComparisons):
    """Comparisons with their final words, each put together when it is looked at."""

    def __init__(self, comparisons: Sequence[Comparison], alpha: float, lost: int) -> None:
        figures = figures_of(comparisons)
        self.preliminary = comparisons
        self.labels: Sequence[Label] = comparisons.labels if isinstance(comparisons, Comparisons) else ()
        self._corrected = holm_of(figures.pair_log10_p, lost)
        self._rejected = self._corrected <= math.log10(alpha)  # nan is not
        self._report = _Report(alpha, int(np.count_nonzero(~np.isnan(self._corrected))) + lost)
        outside = _outside(figures, self._rejected | (figures.words == WORDS.index("identical")))
        self._background = _with_background(figures, outside)
        self._flagged, self._flag_background = flagged(figures.agreements, outside)
        self._figures = replace(figures, words=self._final(figures), log10_p=self._corrected)

    def __len__(self) -> int:
        return len(self.preliminary)

    @property
    def figures(self) -> Figures:
        return self._figures

    @property
    def flagged(self) -> BOOL:
        """Which pairs are flagged as possible laundering, bool [pairs]; those that evidence links are not."""
        return np.asarray(self._flagged & (self._figures.words == WORDS.index("similar-profile")))

    def at(self, number: int) -> Comparison:
        comparison = self.preliminary[number]
        screen = comparison.screen
        if screen.score is not None:
            percentile = float(self._background.percentiles[number])
            screen = replace(
                screen,
                background_percentile=None if math.isnan(percentile) else percentile,
                background_pairs=int(self._background.pairs[number]),
            )
        corrected = float(self._corrected[number])
        value = None if math.isnan(corrected) else corrected
        comparison = replace(comparison, log10_p=value, screen=screen)
        flag = None
        if self._flagged[number] and comparison.agreement is not None:
            flag = sentence(comparison.agreement, self._flag_background)
        return _judged(comparison, bool(self._rejected[number]), self._report, flag)

    def _final(self, figures: Figures) -> npt.NDArray[np.int8]:
        """The words of :func:`_judged`, of all pairs."""
        number, percentile = self._background.pairs, self._background.percentiles
        high = (figures.scores >= HIGH_SCORE) & (number >= BACKGROUND_ENOUGH) & (percentile >= HIGH_PERCENTILE)
        untested = np.isnan(self._corrected)
        was = [figures.words == WORDS.index(word) for word in ("identical", "re-encoded")]
        similar = high | self._flagged
        cases = [was[0], self._rejected & was[1], self._rejected, similar, ~untested, untested]
        return np.select(cases, range(len(WORDS)), 0).astype(np.int8)


def judge(comparisons: Sequence[Comparison], alpha: float = ALPHA, lost: int = 0) -> Judged:
    """Final verdicts of all pairs of one report, in the order given. Pairs without any test do not count as tested;
    ``lost`` more do, which were looked at and could not be reported."""
    return Judged(comparisons, alpha, lost)


def _judged(comparison: Comparison, rejected: bool, report: _Report, flag: str | None) -> Comparison:
    high = _high(comparison.screen)
    own = list(comparison.reasons)
    if comparison.verdict == "identical":
        word, reasons = "identical", own
    elif rejected:
        word = "re-encoded" if comparison.verdict == "re-encoded" else "shared-origin"
        same = own[:1] if word == "re-encoded" else []
        reasons = [*same, _rejection(comparison, report), SAME_SEED, *own[len(same) :]]
    else:
        # What was said in favour of a preliminary word that the correction took back goes with it.
        own = own[1:] if comparison.verdict == "re-encoded" else own
        order = (
            "no test of the order of units could be made"
            if comparison.log10_p is None
            else _no_rejection(comparison, report)
        )
        fallback = "not-comparable" if comparison.log10_p is None else "no-evidence"
        similar = [why for why in (flag, high) if why]
        word = "similar-profile" if similar else fallback
        unjudged = _not_judged(comparison.screen)
        reasons = [*similar, order, *([unjudged] if unjudged else []), *own]
    return replace(comparison, verdict=word, reasons=tuple(reasons))


def _rejection(comparison: Comparison, report: _Report) -> str:
    assert comparison.log10_p is not None
    best = min(comparison.tests, key=lambda test: test.log10_p + test.log10_factor)
    return (
        f"independent initialisation is rejected: p <= {_power(comparison.log10_p)} after correction over "
        f"{_pairs(report.tested)} (order of units, test {best.name}, {best.blocks} blocks, z {best.z:.1f})"
    )


def _no_rejection(comparison: Comparison, report: _Report) -> str:
    assert comparison.log10_p is not None
    return (
        f"{NOT_REJECTED} {report.alpha:g}: p = {10**comparison.log10_p:.2g} after "
        f"correction over {_pairs(report.tested)}"
    )


def _high(screen: Screen) -> str | None:
    """Why the score counts as high against its background, or None."""
    score, percentile, number = screen.score, screen.background_percentile, screen.background_pairs
    if score is None or score < HIGH_SCORE or number < BACKGROUND_ENOUGH:
        return None
    assert percentile is not None
    if percentile < HIGH_PERCENTILE:
        return None
    return (
        f"the seed score {score:.3f} lies above {percentile:.0f} % of {number} pairs that no evidence links; "
        "many unrelated pairs score high, so this is a screen and no evidence"
    )


def _not_judged(screen: Screen) -> str | None:
    """What is said of a score that would be high if there were a background to hold it against."""
    if screen.score is None or screen.score < HIGH_SCORE or screen.background_pairs >= BACKGROUND_ENOUGH:
        return None
    return (
        f"the seed score {screen.score:.3f} is not judged: only {_pairs(screen.background_pairs)} of the report "
        f"that no evidence links could be its background, and {BACKGROUND_ENOUGH} are needed"
    )


def _outside(figures: Figures, linked: BOOL) -> BOOL:
    """Which pairs no evidence links, neither directly nor through a family."""
    family = components((int(a), int(b)) for a, b in figures.names[linked])
    root_of = np.full(figures.names.max(initial=-1) + 1, -1)
    for name, root in family.items():
        root_of[name] = root
    roots = root_of[figures.names]
    return np.asarray((roots[:, 0] == -1) | (roots[:, 0] != roots[:, 1]))


def _with_background(figures: Figures, unlinked: BOOL) -> _Background:
    """What each pair's score is held against; equal scores count half, its own is left out."""
    outside = ~np.isnan(figures.scores) & unlinked
    scores = np.sort(figures.scores[outside])
    number = np.where(np.isnan(figures.scores), 0, len(scores) - outside)
    below = np.searchsorted(scores, figures.scores, "left")
    equal = np.searchsorted(scores, figures.scores, "right") - below - outside
    percentiles = 100 * (below + equal / 2) / np.maximum(number, 1)
    return _Background(number, np.where(number > 0, percentiles, math.nan))


def _power(log10_p: float) -> str:
    return f"1e{math.ceil(log10_p)}"


def _pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"{number} pairs"
