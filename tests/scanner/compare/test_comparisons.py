"""Columns over many pairs say what the comparisons say that are put together of them."""

from dataclasses import replace

import numpy as np
import pytest
from compare.build import LAW, Shape, fingerprint, model, tuned, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from weightprint.compare import WORDS, compare_all, compare_pair, families, figures_of, holm, judge, words_of
from weightprint.compare.holm import holm_of
from weightprint.data import Comparison, Screen, Test

SHAPE = Shape(4, 64, 24)
NAMES = st.sampled_from("abcdefg")


def pair_of(a: str, b: str, word: str, log10_p: float | None, score: float | None) -> Comparison:
    tests = () if log10_p is None else (Test("v whole", 16, 8, 1.0, log10_p, 0.0),)
    return Comparison(a, b, word, log10_p, log10_p, tests, Screen(score))


PAIRS = st.builds(
    pair_of,
    NAMES,
    NAMES,
    st.sampled_from(["identical", "no-evidence", "no-evidence", "no-evidence"]),
    st.sampled_from([None, -0.1, -2.0, -5.5]),
    st.sampled_from([None, 0.2, 0.5, 0.79, 0.85, 0.85, 0.95]),
)


@given(st.lists(PAIRS, max_size=60))
@settings(LAW, max_examples=40)
def test_words_are_those_of_the_comparisons(pairs: list[Comparison]) -> None:
    judged = judge(pairs, 0.01)
    assert [WORDS[word] for word in words_of(judged)] == [pair.verdict for pair in judged]
    assert [WORDS[word] for word in words_of(tuple(judged))] == [pair.verdict for pair in judged]
    assert families(judged) == families(tuple(judged))
    figures = figures_of(judged)
    by_hand = sorted(
        range(len(pairs)),
        key=lambda n: (figures.words[n], np.inf if (p := judged[n].log10_p) is None else p, pairs[n].a, pairs[n].b),
    )
    assert figures.ranked().tolist() == by_hand


def test_re_encoded_needs_its_rejection() -> None:
    pair = Comparison("a", "b", "re-encoded", -9.0, -9.0, (), Screen(0.9), reasons=("why",))
    assert WORDS[words_of(judge([pair], 1e-12))[0]] == judge([pair], 1e-12)[0].verdict == "no-evidence"


def test_judging_in_bulk_is_judging_one_by_one() -> None:
    base = weights(1, SHAPE)
    prints = [fingerprint("base", base), fingerprint("child", tuned(base, 2)), fingerprint("twin", base)]
    prints += [model(f"m{seed}", seed, SHAPE) for seed in range(5, 10)]
    pairs = [(a, b) for a in range(8) for b in range(a + 1, 8)]
    found = compare_all(prints, pairs)
    expected = judge([compare_pair(prints[a], prints[b]) for a, b in pairs])
    assert judge(found) == expected
    assert {pair.verdict for pair in expected} == {"identical", "shared-origin", "no-evidence"}
    assert families(judge(found)) == families(expected)


def test_a_sequence_is_equal_to_equal_ones_only() -> None:
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(3)]
    found = compare_all(prints, [(0, 1), (0, 2)])
    assert found == list(found)
    assert tuple(found) == found
    assert found != list(found)[:1]
    assert found != [found[0], replace(found[1], a="x")]
    assert found != "ab"


@pytest.mark.parametrize("values", [[], [None], [-3.0, None, -1.0, -3.0], [-0.5, -0.4]], ids=str)
def test_holm_of_an_array(values: list[float | None]) -> None:
    column = holm_of(np.array([np.nan if value is None else value for value in values], np.float64))
    assert [None if np.isnan(value) else value for value in column.tolist()] == holm(values)
