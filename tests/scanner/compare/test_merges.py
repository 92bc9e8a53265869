"""Merge candidates: true merges are found with their shares, and no descent without merging makes one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from compare.build import Shape, Weights, fingerprint, relayered, tuned, weights

from weightprint.compare import Family, compare_all, families, judge, prepare
from weightprint.compare.collider import LIMIT, triangle
from weightprint.compare.families import Merge
from weightprint.compare.merges import log10_antiparallel, with_merges
from weightprint.data import Fingerprint

SHAPE = Shape(layers=6, units=128, hidden=64)


def found(fingerprints: Sequence[Fingerprint]) -> tuple[Family, ...]:
    """The families of a report of all pairs."""
    judged = judge(compare_all(fingerprints, np.stack(np.triu_indices(len(fingerprints), 1), axis=1)))
    ready = {one.name: prepare(one) for one in fingerprints}
    return with_merges(families(judged), ready.get)


def merges(of: dict[str, Weights]) -> dict[str, Merge]:
    """Merge candidates by member, of models of these weights."""
    report = found([fingerprint(name, own) for name, own in of.items()])
    return {merge.member: merge for family in report for merge in family.merges}


def mixed(a: Weights, b: Weights, share: float) -> Weights:
    return {key: share * a[key] + (1 - share) * b[key] for key in a}


def step(of: Weights, seed: int, drift: float) -> Weights:
    """Training that moves every weight on its own, and every unit's strength too."""
    generator = np.random.default_rng(seed)
    return {
        (stack, layer, role): value * np.exp(generator.normal(scale=10 * drift, size=(value.shape[0], 1)))
        for (stack, layer, role), value in tuned(of, seed, drift).items()
    }


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_linear_merge_of_two_fine_tunes_is_found_with_its_share(share: float) -> None:
    base = weights(1, SHAPE)
    a, b = tuned(base, 2), tuned(base, 3)
    candidates = merges({"base": base, "a": a, "b": b, "merge": mixed(a, b, share)})
    assert set(candidates) == {"merge"}
    merge = candidates["merge"]
    assert (merge.kind, merge.exact) == ("linear", True)
    shares = {parent.name: (parent.weight, parent.weight_error) for parent in merge.parents}
    assert set(shares) == {"a", "b"}
    assert shares["a"][0] == pytest.approx(share, abs=max(4 * shares["a"][1], 1e-6))
    assert shares["a"][1] < 0.02
    assert sum(weight for weight, _ in shares.values()) == pytest.approx(1)


def test_merge_of_unrelated_parents_is_found_with_its_share() -> None:
    a, b = weights(1, SHAPE), weights(2, SHAPE)
    candidates = merges({"a": a, "b": b, "merge": mixed(a, b, 0.55), "fine-tune of a": tuned(a, 3)})
    assert set(candidates) == {"merge"}
    merge = candidates["merge"]
    assert merge.kind == "of unrelated"
    assert [(parent.name, round(parent.weight, 3)) for parent in merge.parents] == [("a", 0.55), ("b", 0.45)]
    assert all(parent.partial_z is not None and parent.partial_z > 8 for parent in merge.parents)


def test_merge_of_unrelated_parents_of_which_only_relatives_are_known() -> None:
    shape = replace(SHAPE, layers=12)
    a, b = weights(1, shape), weights(2, shape)
    candidates = merges({"tuned a": tuned(a, 3), "tuned b": tuned(b, 4), "merge": mixed(a, b, 0.5)})
    assert set(candidates) == {"merge"}
    merge = candidates["merge"]
    assert (merge.kind, merge.exact) == ("of unrelated", False)
    assert {parent.name for parent in merge.parents} == {"tuned a", "tuned b"}
    assert all(parent.weight == pytest.approx(0.5, abs=0.05) for parent in merge.parents)


def test_two_merges_of_one_pair_name_the_ends_of_their_line() -> None:
    base = weights(1, SHAPE)
    a, b = tuned(base, 2), tuned(base, 3)
    candidates = merges({"a": a, "b": b, "half": mixed(a, b, 0.5), "third": mixed(a, b, 0.35)})
    assert {name: {parent.name for parent in merge.parents} for name, merge in candidates.items()} == {
        "half": {"a", "b"},
        "third": {"a", "b"},
    }


def test_trimmed_merge_is_no_candidate() -> None:
    """Nothing that tells it from a fine-tune beside a merge has been found, so nothing is said."""
    base = weights(1, SHAPE)
    a, b = step(base, 2, 0.003), step(base, 3, 0.003)
    generator = np.random.default_rng(4)
    merge = {
        key: value + 0.5 * (a[key] - value) * generator.binomial(1, 0.9, value.shape) / 0.9 + 0.5 * (b[key] - value)
        for key, value in base.items()
    }
    assert merges({"base": base, "a": a, "b": b, "merge": merge}) == {}


@pytest.mark.parametrize("seed", range(12))
def test_no_descent_without_merging_makes_a_candidate(seed: int) -> None:
    """A random tree: fine-tunes of fine-tunes, light and heavy, some all at once stronger; a cast and a copy."""
    generator = np.random.default_rng(seed)
    models = {"m0": weights(100 + seed, SHAPE)}
    for number in range(1, 9):
        parent = models[f"m{generator.integers(number)}"]
        drift = float(10 ** generator.uniform(-3.5, -1.7))
        change = step if generator.random() < 0.5 else tuned
        models[f"m{number}"] = change(parent, 1000 * seed + number, drift)
    fingerprints = [fingerprint(name, own) for name, own in models.items()]
    half = {key: value.astype(np.float16).astype(np.float64) for key, value in models["m1"].items()}
    fingerprints += [fingerprint("cast", half, dtype="f16"), fingerprint("copy", models["m2"])]
    report = found(fingerprints)
    assert report
    assert len(report[0].members) >= 5
    assert [merge for family in report for merge in family.merges] == []


def test_layers_taken_apart_make_no_candidate() -> None:
    base = weights(1, SHAPE)
    derived = {
        "up-scaled": relayered(base, (0, 1, 2, 3, 2, 3, 4, 5)),
        "pruned": relayered(base, (0, 1, 3, 5)),
        "exchanged": relayered(base, (0, 2, 1, 3, 5, 4)),
    }
    assert merges({"base": base, "fine-tune": tuned(base, 2), **derived}) == {}


def test_chains_do_not_pull_their_ends_together() -> None:
    """Over 100 chains P1 - M - P2 and 100 stars, z of the residual covariance is never near the limit below zero."""
    lowest = 0.0
    for seed in range(100):
        base = weights(seed, replace(SHAPE, layers=3))
        far = [prepare(fingerprint("x", step(base, 7 * seed + n, 0.01))) for n in range(3)]
        middle = prepare(fingerprint("m", base))
        for own in (triangle(middle, far[0], far[1]), triangle(far[2], far[0], far[1])):
            assert own is not None
            lowest = min(lowest, own.z)
    assert LIMIT + 3 < lowest < 0


def test_merge_pulls_its_parents_together() -> None:
    shape = replace(SHAPE, layers=12)
    a, b = weights(1, shape), weights(2, shape)
    own = triangle(*(prepare(fingerprint("x", one)) for one in (mixed(a, b, 0.5), a, b)))
    assert own is not None
    assert own.z < LIMIT
    assert own.unexplained
    assert min(own.first, own.second) > 0.4
    assert abs(own.between) < 0.15


@pytest.mark.parametrize(("dimensions", "r"), [(4, -0.5), (8, -0.6), (16, -0.4)])
def test_bound_of_antiparallel_directions_holds(dimensions: int, r: float) -> None:
    vectors = np.random.default_rng(1).normal(size=(200_000, dimensions))
    share = float((vectors[:, 0] / np.linalg.norm(vectors, axis=1) <= r).mean())
    assert 0 < share <= 10 ** log10_antiparallel(r, dimensions) <= 10 * share
