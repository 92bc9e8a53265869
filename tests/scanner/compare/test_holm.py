"""Corrections for many tests: Holm against an independent implementation, and the laws that it must obey."""

import math
from fractions import Fraction

import numpy as np
import pytest
from compare.build import LAW
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare.holm import bonferroni, holm, holm_of, log10_count

LOG10_P = st.floats(-5000, 0)
MADE_OR_NOT = st.lists(st.one_of(st.none(), LOG10_P), max_size=30)
MADE = st.lists(LOG10_P, min_size=1, max_size=30)


def rejected_by_steps(p_values: list[Fraction], alpha: Fraction) -> list[bool]:
    """Holm's procedure as he wrote it: reject the smallest while it is at most alpha / (tests left)."""
    rejected = [False] * len(p_values)
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - done):
            break
        rejected[index] = True
    return rejected


@given(
    st.lists(st.fractions(Fraction(1, 10**9), 1, max_denominator=10**9), min_size=1, max_size=12),
    st.fractions(Fraction(1, 10**9), Fraction(99, 100), max_denominator=10**9),
)
@LAW
def test_rejects_what_the_stepwise_procedure_rejects(p_values: list[Fraction], alpha: Fraction) -> None:
    corrected = holm([math.log10(p) for p in p_values])
    for value, rejected in zip(corrected, rejected_by_steps(p_values, alpha), strict=True):
        assert value is not None
        # At the level itself the two may differ by a rounding of the logarithm.
        if abs(value - math.log10(alpha)) > 1e-12:
            assert (value <= math.log10(alpha)) == rejected


@given(MADE_OR_NOT)
@LAW
def test_tests_not_made_neither_count_nor_change(values: list[float | None]) -> None:
    corrected = holm(values)
    assert [value is None for value in corrected] == [value is None for value in values]
    made = [value for value in values if value is not None]
    assert [value for value in corrected if value is not None] == holm(made)


@given(MADE)
@LAW
def test_between_the_raw_value_and_bonferroni(values: list[float]) -> None:
    for raw, corrected in zip(values, holm(values), strict=True):
        assert corrected is not None
        assert raw <= corrected <= min(0.0, raw + math.log10(len(values)) + 1e-12)


@given(MADE)
@LAW
def test_smallest_pays_for_all_tests(values: list[float]) -> None:
    corrected = [value for value in holm(values) if value is not None]
    assert min(corrected) == pytest.approx(min(0.0, min(values) + math.log10(len(values))), abs=1e-12)


@given(MADE)
@LAW
def test_keeps_the_order(values: list[float]) -> None:
    corrected = [value for value in holm(values) if value is not None]
    by_raw = [value for _, value in sorted(zip(values, corrected, strict=True))]
    assert by_raw == sorted(by_raw)


@given(MADE, st.randoms(use_true_random=False))
@LAW
def test_does_not_depend_on_the_order_of_the_pairs(values: list[float], random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    direct, shuffled = holm(values), holm([values[index] for index in order])
    assert shuffled == [direct[index] for index in order]


@given(MADE, LOG10_P)
@LAW
def test_one_more_test_never_lowers_a_value(values: list[float], more: float) -> None:
    for fewer, further in zip(holm(values), holm([*values, more]), strict=False):
        assert fewer is not None
        assert further is not None
        assert further >= fewer


def test_worked_example() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    corrected = holm([math.log10(p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [10**value for value in corrected if value is not None] == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(MADE, st.integers(0, 20))
@LAW
def test_tests_of_which_nothing_is_known_count_as_the_largest(values: list[float], more: int) -> None:
    """Which is the worst that they can be for the others."""
    known = holm_of(np.array([*values, *[0.0] * more]))[: len(values)]
    assert holm_of(np.array(values), more).tolist() == pytest.approx(known.tolist())


def test_nothing_tested() -> None:
    assert holm([]) == []
    assert holm([None, None]) == [None, None]


@pytest.mark.parametrize(
    ("log10_p", "number", "corrected"), [(-8.0, 100, -6.0), (-1.0, 100, 0.0), (-7.0, 1, -7.0), (-9000.0, 10, -8999.0)]
)
def test_bonferroni(log10_p: float, number: int, corrected: float) -> None:
    assert bonferroni(log10_p, log10_count(number)) == pytest.approx(corrected, abs=1e-12)


def test_no_test_costs_nothing() -> None:
    assert log10_count(0) == log10_count(1) == 0.0
