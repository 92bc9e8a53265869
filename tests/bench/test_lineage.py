"""The figures of bench/lineage.py on sets small enough to count by hand, and that its check sees what must not be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare.build import fingerprint as taken
from compare.build import model, weights
from lineage_parts.check import violations
from lineage_parts.figures import (
    adjusted_rand_index,
    best_clustering,
    clusters,
    moment_score,
    separation,
    uniformity,
)
from lineage_parts.findings import older_than
from lineage_parts.truth import Held, Truth, truths_of

from weightprint.data import Comparison, Screen


def test_separation_counts_pairs() -> None:
    found = separation(np.array([3.0, 1.0]), np.array([2.0, 0.0, 0.0, 0.0]))
    assert found.auc == (4 + 3) / 8
    assert (found.smallest_related, found.largest_unrelated) == (1.0, 2.0)
    assert found.true_positives == (0.5, 0.5)


def test_separation_of_nothing() -> None:
    assert math.isnan(separation(np.zeros(0), np.ones(2)).auc)


def test_uniformity_counts_what_is_at_most_each_level() -> None:
    found = uniformity(np.concatenate([np.linspace(0.002, 1, 998), [0.001, 0.0005]]))
    assert (found.number, found.at_most) == (1000, (50, 10, 2))
    assert found.kolmogorov_smirnov > 0.9
    assert uniformity(np.full(100, 0.01)).kolmogorov_smirnov < 1e-6


def test_adjusted_rand_index() -> None:
    """0.24 is the example of Hubert and Arabie's formula worked out: 2 pairs together of 4 and 4, of 15."""
    assert adjusted_rand_index("aabb", "xxyy") == 1.0
    assert adjusted_rand_index("aabbc", "aabbc") == 1.0
    expected = 3 * 3 / math.comb(6, 2)
    together = 1
    assert adjusted_rand_index("aabbcc", "aacbbc") == pytest.approx((together - expected) / (3 - expected))
    assert adjusted_rand_index("abcd", "abcd") == 1.0


def test_best_clustering_takes_the_limit_that_is_best_in_hindsight() -> None:
    names = list("abcd")
    truth = clusters(names, [("a", "b"), ("c", "d")])
    scored = [("a", "b", 0.9), ("c", "d", 0.8), ("a", "c", 0.7), ("b", "d", 0.1)]
    assert best_clustering(names, truth, scored) == (1.0, 0.8)


def test_moment_score_is_of_ranks() -> None:
    own = weights(1)
    a = taken("a", own)
    assert moment_score(a, taken("b", {key: 2 * value for key, value in own.items()})) == pytest.approx(1.0)
    unrelated = moment_score(a, model("c", 2))
    assert unrelated is not None and abs(unrelated) < 0.7


def test_truth_file(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    file.write_text(json.dumps({"members": [{"name": "a", "seeds": [1]}, {"name": "b", "seeds": ["1", "2"]}]}))
    a, b = truths_of(file).values()
    pair = Held(Comparison("a", "b", "no-evidence", None, None, (), Screen(None)), a, b)
    assert pair.related and pair.findable
    file.write_text(json.dumps({"members": [{"name": "a"}]}))
    with pytest.raises(ValueError, match='no "members" with "name" and "seeds"'):
        truths_of(file)


def test_laundered_members_are_related_and_not_findable() -> None:
    a, b = Truth("a", "seed", frozenset("1")), Truth("b", "x", frozenset("1"), attention="laundered")
    pair = Held(Comparison("a", "b", "no-evidence", None, None, (), Screen(None)), a, b)
    assert pair.related and not pair.findable


def test_what_is_older_passes_on() -> None:
    truths = {
        "seed": Truth("seed", "seed", frozenset("1")),
        "child": Truth("child", "tuned", frozenset("1"), parents=("seed",)),
        "grandchild": Truth("grandchild", "cast", frozenset("1"), older=frozenset({"child"})),
    }
    assert older_than(truths, "grandchild") == {"child", "seed"}
    assert older_than(truths, "seed") == set()


def place(**changes: Any) -> dict[str, Any]:
    clean = {
        "unrelated_linked": [],
        "confirm": {"unrelated": {"confirmed": 0}},
        "directions": {"not_true": []},
        "merges": {"candidates": [{"member": "m", "is_merge": True}]},
        "unexpected": [],
        "uniformity": {"layer pairs of unrelated models": {"kolmogorov_smirnov": 0.4}},
    }
    return {"places": {"zoo": {**clean, **changes}}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"unrelated_linked": [{"a": "x", "b": "y", "verdict": "shared-origin"}]}, "x and y have nothing in common"),
        ({"confirm": {"unrelated": {"confirmed": 2}}}, "2 unrelated pairs are confirmed"),
        ({"directions": {"not_true": [["x", "y", "a cue"]]}}, "x is called older than y"),
        ({"merges": {"candidates": [{"member": "m", "is_merge": False}]}}, "m is called a merge candidate"),
        ({"unexpected": [{"name": "x", "said": "no-evidence", "expected": "identical"}]}, "x is called no-evidence"),
        ({"uniformity": {"layer pairs of unrelated models": {"kolmogorov_smirnov": 1e-5}}}, "are not uniform"),
    ],
)
def test_check_says_what_must_not_be(changes: dict[str, Any], line: str) -> None:
    assert list(violations(place())) == []
    (found,) = violations(place(**changes))
    assert line in found
