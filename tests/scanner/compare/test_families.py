"""Families are connected components over evidence; a screen joins nothing, a path joins as well as a pair."""

from dataclasses import replace

import pytest
from compare.build import LAW, fingerprint, model, scored, tuned, weights
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightprint.compare import compare_all, families, judge
from weightprint.compare.families import Family, Link, components
from weightprint.data import Comparison

WORDS = ["identical", "re-encoded", "shared-origin", "similar-profile", "no-evidence", "not-comparable"]
JOINING = WORDS[:3]
NODES = st.integers(0, 8)
EDGES = st.lists(st.tuples(NODES, NODES, st.sampled_from(WORDS)), max_size=14)


def pair(a: str, b: str, word: str, log10_p: float | None = -9.0) -> Comparison:
    return replace(scored(a, b, 0.99, log10_p), verdict=word)


@pytest.mark.parametrize("word", WORDS)
def test_only_evidence_joins(word: str) -> None:
    found = families([pair("a", "b", word)])
    assert found == ((Family(("a", "b"), (Link("a", "b", word, -9.0),)),) if word in JOINING else ())


def test_path_joins_and_every_link_is_listed() -> None:
    found = families(
        [
            pair("c", "b", "shared-origin", -20.0),
            pair("a", "c", "similar-profile"),
            pair("a", "b", "identical", None),
            pair("x", "y", "re-encoded", -30.0),
            pair("a", "x", "no-evidence"),
        ]
    )
    assert found == (
        Family(("a", "b", "c"), (Link("c", "b", "shared-origin", -20.0), Link("a", "b", "identical", None))),
        Family(("x", "y"), (Link("x", "y", "re-encoded", -30.0),)),
    )


def test_largest_first_then_by_name() -> None:
    edges = [("z", "y"), ("b", "a"), ("m", "n"), ("n", "o")]
    assert [family.members for family in families([pair(a, b, "shared-origin") for a, b in edges])] == [
        ("m", "n", "o"),
        ("a", "b"),
        ("y", "z"),
    ]


def test_no_pair_no_family() -> None:
    assert families([]) == ()


@given(EDGES)
@LAW
def test_components_against_scipy(edges: list[tuple[int, int, str]]) -> None:
    joined = [(a, b) for a, b, word in edges if word in JOINING]
    graph = coo_array(([1] * len(joined), tuple(zip(*joined, strict=True)) or ([], [])), shape=(9, 9))
    number, label = connected_components(graph, directed=False)
    touched = {node for edge in joined for node in edge}
    expected = {frozenset(str(node) for node in touched if label[node] == part) for part in range(number)} - {
        frozenset()
    }
    found = families([pair(str(a), str(b), word) for a, b, word in edges])
    assert {frozenset(family.members) for family in found} == expected
    assert sum(len(family.evidence) for family in found) == len(joined)
    for family in found:
        assert {name for link in family.evidence for name in (link.a, link.b)} == set(family.members)
        assert list(family.members) == sorted(family.members)
    named = components((str(a), str(b)) for a, b in joined)
    assert {frozenset(name for name, root in named.items() if root == own) for own in named.values()} == expected


def test_two_families_of_fingerprints() -> None:
    """A chain base - child - grandchild, a pair of another origin, and one alone."""
    base, other = weights(1), weights(2)
    child = tuned(base, 3, 0.004)
    prints = [
        fingerprint("base", base),
        fingerprint("child", child),
        fingerprint("grandchild", tuned(child, 4, 0.004)),
        fingerprint("other", other),
        fingerprint("other again", other),
        model("alone", 5),
    ]
    pairs = [(a, b) for a in range(6) for b in range(a)]
    found = families(judge(compare_all(prints, pairs)))
    assert [family.members for family in found] == [("base", "child", "grandchild"), ("other", "other again")]
