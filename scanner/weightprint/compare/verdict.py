"""From the comparisons of a report to their final words: Holm over all pairs tested, background of the screen, reasons.

Order of the words: identical, re-encoded, shared-origin, similar-profile, no-evidence, not-comparable. A p-value alone
makes shared-origin; the screen alone makes similar-profile, which is no evidence.

Background of a pair's score: the scores of the report's other pairs that no evidence links, neither directly nor
through a family. The score is called high when at least 95 % of 20 or more such pairs lie below it and it is at least
0.8. With fewer, no score is called high: unrelated models of one recipe reach 0.9 and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.compare.families import components
from weightprint.compare.holm import holm
from weightprint.data import Comparison, Screen

ALPHA = 1e-6
BACKGROUND_ENOUGH = 20
HIGH_PERCENTILE = 95.0
HIGH_SCORE = 0.8

SAME_SEED = (
    "this holds for parent, child, sibling and cousin alike and does not say who derived from whom; two trainings "
    "from scratch with the same code and random seed share their initialisation too"
)


@dataclass(frozen=True)
class _Report:
    """What a pair's word depends on beside the pair: the level, how many pairs were tested."""

    alpha: float
    tested: int


def judge(comparisons: Sequence[Comparison], alpha: float = ALPHA) -> tuple[Comparison, ...]:
    """Final verdicts of all pairs of one report, in the order given. Pairs without any test do not count as tested."""
    corrected = holm([comparison.pair_log10_p for comparison in comparisons])
    report = _Report(alpha, sum(value is not None for value in corrected))
    rejected = [value is not None and value <= math.log10(alpha) for value in corrected]
    linked = [no or c.verdict == "identical" for no, c in zip(rejected, comparisons, strict=True)]
    screens = _with_background(comparisons, linked)
    return tuple(
        _judged(replace(comparison, log10_p=value, screen=screen), no, report)
        for comparison, value, screen, no in zip(comparisons, corrected, screens, rejected, strict=True)
    )


def _judged(comparison: Comparison, rejected: bool, report: _Report) -> Comparison:
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
        word = "similar-profile" if high else fallback
        unjudged = _not_judged(comparison.screen)
        reasons = [*([high] if high else []), order, *([unjudged] if unjudged else []), *own]
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
        f"independent initialisation is not rejected at {report.alpha:g}: p = {10**comparison.log10_p:.2g} after "
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


def _with_background(comparisons: Sequence[Comparison], linked: Sequence[bool]) -> list[Screen]:
    family = components((c.a, c.b) for c, link in zip(comparisons, linked, strict=True) if link)
    outside = [
        c.screen.score is not None and (c.a not in family or family[c.a] != family.get(c.b)) for c in comparisons
    ]
    scores = np.sort([c.screen.score for c, out in zip(comparisons, outside, strict=True) if out]).astype(np.float64)
    return [_placed(c.screen, scores, out) for c, out in zip(comparisons, outside, strict=True)]


def _placed(screen: Screen, scores: FLOAT64, own_is_among_them: bool) -> Screen:
    """The percentile of the score among ``scores``, its own left out; equal scores count half."""
    number = len(scores) - own_is_among_them
    if screen.score is None or number == 0:
        return replace(screen, background_pairs=number if screen.score is not None else 0)
    below = int(np.searchsorted(scores, screen.score, "left"))
    equal = int(np.searchsorted(scores, screen.score, "right")) - below - own_is_among_them
    return replace(screen, background_percentile=100 * (below + equal / 2) / number, background_pairs=number)


def _power(log10_p: float) -> str:
    return f"1e{math.ceil(log10_p)}"


def _pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"{number} pairs"
