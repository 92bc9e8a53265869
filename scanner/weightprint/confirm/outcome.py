"""From the weights of a pair to an outcome, and what it makes of the verdict.

confirmed: a test rejects independent initialisation at 1e-6, corrected over the tests made here and over two looks, of
which the ordinary comparison was the first. withdrawn: tests that could have proven it find nothing.
not possible: no test could be made, too few heads agree to reach the level, or heads agree in an order that no exact
test can judge. A word that rests on evidence is never taken back, and nothing is said of intent.
"""

from __future__ import annotations

import math
from dataclasses import replace

from weightprint.compare.invariants import LAUNDERING
from weightprint.compare.verdict import ALPHA, NOT_REJECTED, SAME_SEED
from weightprint.confirm import TAKEN_BACK
from weightprint.confirm.anatomy import Anatomy, anatomy_of
from weightprint.confirm.exact_tests import Made, exact_tests
from weightprint.confirm.reduction import reduce_checkpoint
from weightprint.confirm.refusals import fixed_positions, fixed_slopes
from weightprint.confirm.unit_matching import match_units
from weightprint.confirm.weights import device_of
from weightprint.data import Checkpoint, Comparison, Confirmation, ConfirmTest, UnitMatching
from weightprint.errors import CheckpointError
from weightprint.fingerprint import read_structure
from weightprint.roles.config import hints_for

CONFIRMED, WITHDRAWN, NOT_POSSIBLE = "confirmed", "withdrawn", "not possible"
EVIDENCE = ("identical", "re-encoded", "shared-origin")
DOUBTFUL_LOG10_P = -2.0
"""A test that cannot reach the level is not said to have found nothing where p after correction is at or below this."""

DOUBTFUL_CLOSENESS = 0.01
"""Nor are networks whose heads, in whatever order, are as near to each other as this."""


def confirm_pair(a: Checkpoint, b: Checkpoint, device: str, alpha: float = ALPHA) -> Confirmation:
    """Read the weights of two checkpoints and test them; raises DeviceError. What cannot be read makes the outcome
    "not possible", with the reason."""
    on = device_of(device)
    try:
        anatomies = [anatomy_of(read_structure(checkpoint)) for checkpoint in (a, b)]
        for checkpoint, anatomy in zip((a, b), anatomies, strict=True):
            if anatomy is None:
                why = f"{checkpoint.name} has no layer whose q, k, v and o are matrices of their own"
                return Confirmation(NOT_POSSIBLE, (), None, (why,))
        first, second = (anatomy for anatomy in anatomies if anatomy is not None)
        return _tested((a, b), (first, second), on, alpha)
    except CheckpointError as error:
        return Confirmation(NOT_POSSIBLE, (), None, (error.line(),))


def _tested(
    checkpoints: tuple[Checkpoint, Checkpoint], anatomies: tuple[Anatomy, Anatomy], device: str, alpha: float
) -> Confirmation:
    a, b = (
        reduce_checkpoint(anatomy, hints_for(checkpoint.config, anatomy.stack).model_type, device)
        for checkpoint, anatomy in zip(checkpoints, anatomies, strict=True)
    )
    refusals = {
        name: next((why for own in checkpoints if (why := refuse(own.config))), None)
        for name, refuse in (("residual", fixed_positions), ("heads", fixed_slopes))
    }
    made = exact_tests(a, b, refusals, math.log10(alpha))
    matching = match_units(*anatomies, device)
    unread = tuple(f"{own.name}: {why}" for own, side in zip(checkpoints, (a, b), strict=True) for why in side.missing)
    return conclude(made, matching, unread, alpha)


def conclude(made: Made, matching: UnitMatching | str, unread: tuple[str, ...], alpha: float) -> Confirmation:
    """The outcome of tests that were made."""
    best = min(made.tests, key=lambda test: test.log10_p, default=None)
    log10_p = None if best is None else _corrected(best)
    said = () if not isinstance(matching, str) else (matching,)
    figures = None if isinstance(matching, str) else matching
    reasons = (*made.reasons, *said, *unread)
    if best is None or log10_p is None:
        return Confirmation(NOT_POSSIBLE, (), None, reasons, figures)
    if log10_p <= math.log10(alpha):
        return Confirmation(CONFIRMED, made.tests, log10_p, reasons, figures)
    in_doubt = _in_doubt(made)
    outcome = NOT_POSSIBLE if in_doubt or len(made.weak) == len(made.tests) else WITHDRAWN
    return Confirmation(outcome, made.tests, log10_p, (*in_doubt, *made.weak.values(), *reasons), figures)


def _in_doubt(made: Made) -> tuple[str, ...]:
    """Why nothing found is not taken for nothing there."""
    doubtful = [
        f"{test.name}: agrees as well as so few heads can show"
        for test in made.tests
        if test.name in made.weak and _corrected(test) <= DOUBTFUL_LOG10_P
    ]
    if made.closeness is not None and made.closeness <= DOUBTFUL_CLOSENESS:
        doubtful.append(
            f"heads: in their best matching, whatever its order, spectra lie {made.closeness:.2g} of the mean distance "
            "apart; no exact test can judge that"
        )
    return tuple(doubtful)


def with_confirmation(comparison: Comparison, found: Confirmation) -> Comparison:
    """The comparison after its weights were read."""
    own = comparison.reasons
    if comparison.verdict in EVIDENCE:
        return replace(comparison, reasons=(*own, _said(found)))
    kept = tuple(reason for reason in own if not reason.startswith(LAUNDERING))
    if found.outcome == CONFIRMED:
        reasons = (_rejection(found), SAME_SEED, *(_beside_a_rejection(reason, comparison) for reason in kept))
        return replace(comparison, verdict="shared-origin", log10_p=found.log10_p, reasons=reasons)
    if found.outcome == WITHDRAWN and len(kept) < len(own):
        word = "not-comparable" if comparison.log10_p is None else "no-evidence"
        return replace(comparison, verdict=word, reasons=(_said(found, TAKEN_BACK), *kept))
    return replace(comparison, reasons=(*own, _said(found)))


def _beside_a_rejection(reason: str, comparison: Comparison) -> str:
    """What the first look found, said so that it does not contradict the second."""
    if comparison.log10_p is None or not reason.startswith(NOT_REJECTED):
        return reason
    return f"the order of attention's units alone does not reject it: p = {10**comparison.log10_p:.2g}"


def _corrected(test: ConfirmTest) -> float:
    return min(0.0, test.log10_p + test.log10_factor)


def _best(found: Confirmation) -> ConfirmTest:
    return min(found.tests, key=lambda test: test.log10_p)


def _rejection(found: Confirmation) -> str:
    best = _best(found)
    assert found.log10_p is not None
    units = f"{best.blocks} blocks" if best.count is None else f"{best.statistic} of {best.count} heads in place"
    return (
        f"independent initialisation is rejected: p <= 1e{math.ceil(found.log10_p)} after correction over "
        f"{len(found.tests)} tests of the weights, the second of two looks (test {best.name}, {units}); the tests "
        "of the order of attention's units did not see it"
    )


def _said(found: Confirmation, taken_back: str = "") -> str:
    """What reading the weights gave, in a sentence."""
    if not found.tests:
        return f"confirm was not possible: {'; '.join(found.reasons)}"
    best = _best(found)
    assert found.log10_p is not None
    p = f"p = {10**found.log10_p:.2g}" if found.log10_p > -4 else f"p <= 1e{math.ceil(found.log10_p)}"
    tested = (
        f"{p} after correction over {len(found.tests)} tests of the weights, the second of two looks (test {best.name})"
    )
    if found.outcome == CONFIRMED:
        return f"reading the weights says the same: {tested}"
    if found.outcome == WITHDRAWN:
        return f"{taken_back}reading the weights found nothing: {tested}; this is no proof of independence"
    return f"confirm could neither prove nor withdraw anything: {tested}; {'; '.join(found.reasons[:1])}"
