"""Directions: each cue states who is older, and nothing is stated where a sibling or a twin would do as well."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from compare.build import Shape, Weights, fingerprint, relayered, tuned, weights

from weightprint.compare import compare_all, judge, prepare
from weightprint.compare.direction import Direction, directions
from weightprint.compare.families import Family, Merge, Parent
from weightprint.data import FLOAT32, Comparison, Fingerprint

SHAPE = Shape(layers=6, units=64, hidden=48)


def stated(fingerprints: Iterable[Fingerprint], families: tuple[Family, ...] = ()) -> dict[tuple[str, str], Direction]:
    all_of_them = list(fingerprints)
    judged = judge(compare_all(all_of_them, np.stack(np.triu_indices(len(all_of_them), 1), axis=1)))
    return directions(judged, {own.name: prepare(own) for own in all_of_them}.get, families)


def olders(found: Mapping[tuple[str, str], Direction]) -> set[tuple[str | None, str | None]]:
    return {(direction.older, direction.younger) for direction in found.values()}


def rounded(of: Weights, bits: int) -> Weights:
    """Weights to so many significant bits, ties to even."""
    found = {}
    for key, value in of.items():
        mantissa, exponent = np.frexp(value)
        found[key] = np.ldexp(np.rint(mantissa * 2**bits), exponent - bits)
    return found


def test_the_unrounded_one_is_older() -> None:
    base = weights(1, SHAPE)
    found = stated([fingerprint("coarse", rounded(base, 8), dtype="bf16"), fingerprint("fine", base, dtype="f32")])
    assert olders(found) == {("fine", "coarse")}


def test_an_exact_conversion_gives_no_direction() -> None:
    base = rounded(weights(1, SHAPE), 8)
    assert stated([fingerprint("a", base, dtype="bf16"), fingerprint("b", base, dtype="f32")]) == {}


def test_a_fine_tune_smaller_than_rounding_is_no_older_one() -> None:
    base = rounded(weights(1, SHAPE), 8)
    moved = tuned(base, 2, drift=1e-5)
    assert stated([fingerprint("base", base, dtype="bf16"), fingerprint("tuned", moved, dtype="f32")]) == {}


def test_f16_and_bf16_have_no_direction() -> None:
    base = weights(1, SHAPE)
    both = [fingerprint("a", rounded(base, 8), dtype="bf16"), fingerprint("b", rounded(base, 11), dtype="f16")]
    assert stated(both) == {}


@pytest.mark.parametrize("layers", [(0, 1, 2, 3, 2, 3, 4, 5), (0, 1, 3, 5)])
def test_the_one_with_every_layer_once_is_older(layers: tuple[int, ...]) -> None:
    base = weights(1, SHAPE)
    found = stated([fingerprint("base", base), fingerprint("derived", relayered(base, layers))])
    assert olders(found) == {("base", "derived")}


def test_a_sibling_is_not_older() -> None:
    base = weights(1, SHAPE)
    cut = relayered(base, (0, 1, 3, 5))
    repeated = relayered(base, (0, 1, 2, 3, 2, 3, 4, 5))
    sibling = fingerprint("sibling", tuned(base, 2))
    assert stated([sibling, fingerprint("cut", cut), fingerprint("repeated", repeated)]) == {}


def test_nothing_is_stated_where_a_twin_would_do() -> None:
    base = weights(1, SHAPE)
    cut = fingerprint("cut", relayered(base, (0, 1, 3, 5)))
    found = stated([fingerprint("base", base), fingerprint("twin", base), cut])
    assert olders(found) == {(None, None)}
    assert all("in its place" in str(direction.reason) for direction in found.values())


def test_parents_are_older_than_their_merge_and_disagreement_states_nothing() -> None:
    base = weights(1, SHAPE)
    merge = Merge("cut", (Parent("base", None, 1.0, 0.0),), "linear", "", exact=True)
    other = replace(merge, member="base", parents=(Parent("cut", None, 1.0, 0.0),))
    pair = [fingerprint("base", base), fingerprint("cut", relayered(base, (0, 1, 3, 5)))]
    (agreed,) = stated(pair, (Family((), (), (merge,)),)).values()
    assert (agreed.older, len(agreed.cues)) == ("base", 2)
    (disagreed,) = stated(pair, (Family((), (), (other,)),)).values()
    assert disagreed.older is None
    assert "disagree" in str(disagreed.reason)


def test_the_dense_one_is_older_than_its_experts() -> None:
    base = weights(1, SHAPE)
    hidden: dict[tuple[str, int, str], FLOAT32] = {
        ("model.layers", layer, "gate"): np.random.default_rng(layer).chisquare(9, 96).astype(np.float32)
        for layer in range(6)
    }
    dense = fingerprint("dense", tuned(base, 2), energies=hidden)
    experts = {key: np.tile(value, 4) for key, value in hidden.items()}
    sparse = fingerprint("sparse", tuned(base, 3), energies=experts)
    assert olders(stated([dense, sparse])) == {("dense", "sparse")}
    moved = {key: value * np.linspace(1, 1.001, len(value), dtype=np.float32) for key, value in experts.items()}
    assert stated([dense, fingerprint("trained", tuned(base, 3), energies=moved)]) == {}


def test_unrelated_pairs_are_not_looked_at() -> None:
    pairs: list[Comparison] = []
    assert directions(pairs, {}.get) == {}
    assert stated([fingerprint("a", weights(1, SHAPE)), fingerprint("b", weights(2, SHAPE))]) == {}
