"""Matchings against scipy, laws against enumeration, tails against integer convolution."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from weightprint.confirm.assignment import (
    best_matching,
    heads_in_place,
    law_counts,
    log10_in_place,
    rencontres,
    smallest_log10,
)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("whole", [False, True])
def test_the_matching_is_the_best(size: int, whole: bool) -> None:
    generator = np.random.default_rng(size)
    for _ in range(20):
        cost = generator.normal(size=(size, size))
        cost = np.round(2 * cost) if whole else cost
        chosen = best_matching(cost)
        assert sorted(chosen) == list(range(size))
        rows, columns = linear_sum_assignment(cost)
        assert cost[np.arange(size), chosen].sum() == pytest.approx(cost[rows, columns].sum())


def elements(groups: int, shared: int) -> list[tuple[int, ...]]:
    """Every permutation of the query heads that respects the groups."""
    inner = list(itertools.permutations(range(shared)))
    return [
        tuple(group * shared + head for group, order in zip(outer, orders, strict=True) for head in order)
        for outer in itertools.permutations(range(groups))
        for orders in itertools.product(inner, repeat=groups)
    ]


@pytest.mark.parametrize(("groups", "shared"), [(1, 1), (4, 1), (1, 4), (2, 2), (3, 2), (2, 3)])
def test_the_law_counts_every_element(groups: int, shared: int) -> None:
    everything = elements(groups, shared)
    counted = [0] * (groups * shared + 1)
    for element in everything:
        counted[sum(place == head for place, head in enumerate(element))] += 1
    assert law_counts(groups, shared) == counted
    assert smallest_log10([(groups, shared)]) == pytest.approx(-math.log10(len(everything)), abs=1e-12)


def test_rencontres_numbers() -> None:
    assert rencontres(4) == [9, 8, 6, 0, 1]


@pytest.mark.parametrize("layers", [[(2, 2)] * 6, [(12, 1)] * 12, [(8, 4), (4, 8), (1, 32)]])
def test_tails_are_exact_and_never_too_small(layers: list[tuple[int, int]]) -> None:
    total = [1]
    for groups, shared in layers:
        law = law_counts(groups, shared)
        total = [
            sum(total[i] * law[k - i] for i in range(len(total)) if 0 <= k - i < len(law))
            for k in range(len(total) + len(law) - 1)
        ]
    everything = sum(total)
    for count in range(len(total)):
        if not sum(total[count:]):
            continue
        share = Fraction(sum(total[count:]), everything)
        exact = (math.log(share.numerator) - math.log(share.denominator)) / math.log(10)
        found = log10_in_place(count, layers)
        assert found >= exact - 1e-11 * abs(exact) - 1e-13
        assert found == pytest.approx(exact, abs=1e-6)


def test_uniform_matchings_of_independent_heads() -> None:
    """The number of heads in place has the law that p is computed from."""
    generator = np.random.default_rng(7)
    draws = 3000
    found = np.zeros(5)
    for number in range(draws):
        a, b = generator.normal(size=(2, 4, 6)) + np.linspace(0, 1, 6)
        cost = ((a[:, None] - b[None]) ** 2).sum(-1)
        found[heads_in_place(cost, 2, number)] += 1
    expected = np.array(law_counts(2, 2)) / 8
    assert np.abs(found / draws - expected).max() < 4 * math.sqrt(0.25 / draws)


def test_ties_do_not_favour_the_order_as_it_is() -> None:
    """Heads that are all alike say nothing."""
    counts = [heads_in_place(np.zeros((8, 8)), 4, number) for number in range(400)]
    mean = sum(heads * count for heads, count in enumerate(law_counts(4, 2))) / sum(law_counts(4, 2))
    assert np.mean(counts) == pytest.approx(mean, abs=0.3)


def test_heads_in_place_are_found() -> None:
    generator = np.random.default_rng(3)
    spectra = generator.normal(size=(12, 16))
    cost = ((spectra[:, None] - (spectra + 0.01 * generator.normal(size=(12, 16)))[None]) ** 2).sum(-1)
    assert heads_in_place(cost, 4) == 12
    moved = np.array([3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 11, 10])
    assert heads_in_place(cost[moved], 4) == 4
