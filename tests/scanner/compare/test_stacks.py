"""Stacks and curves of a fingerprint, and which stack of one file is which of another."""

import math
from dataclasses import replace

import numpy as np
import pytest
from compare.build import LAW, STACK, Shape, fingerprint, model, weights, without
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare.stacks import Stack, correspond, curves_of, match_stacks, stacks_of

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


def test_extent_over_all_roles() -> None:
    whole = model("m", 1, Shape(7, 16, 8))
    damaged = without(without(whole, [0, 6], "qkv"), [3])
    (stack,) = stacks_of(damaged)
    assert stack == Stack(STACK, 0, 7, 6, 16 * 8 * (4 * 6 - 6))


def test_first_layer_need_not_be_zero() -> None:
    (stack,) = stacks_of(without(model("m", 1, Shape(7)), [0, 1, 4]))
    assert (stack.first, stack.depth, stack.layers) == (2, 5, 4)


def test_largest_first_then_elements_then_name() -> None:
    shapes = [Shape(3, 16, 8, "b"), Shape(3, 16, 8, "a"), Shape(3, 32, 8, "z"), Shape(4, 16, 8, "y")]
    own = {key: value for shape in shapes for key, value in weights(1, shape).items()}
    assert [stack.name for stack in stacks_of(fingerprint("m", own))] == ["y", "z", "a", "b"]


def test_curves_count_positions_and_skip_what_is_not_finite() -> None:
    whole = without(model("m", 1, Shape(5)), [0])
    damaged = replace(
        whole, matrices=tuple(replace(m, std=math.nan) if (m.layer, m.role) == (3, "k") else m for m in whole.matrices)
    )
    curves = curves_of(damaged, stacks_of(damaged))
    assert {role: curve.positions for (_, role), curve in curves.items()} == {
        "q": (0, 1, 2, 3),
        "k": (0, 1, 3),
        "v": (0, 1, 2, 3),
        "o": (0, 1, 2, 3),
    }
    expected = [m.std for m in whole.matrices if m.role == "k" and m.layer != 3]
    assert np.array_equal(curves[STACK, "k"].values, expected)


def test_order_of_matrices_does_not_matter() -> None:
    whole = model("m", 1, Shape(5))
    shuffled = replace(whole, matrices=whole.matrices[::-1])
    assert stacks_of(shuffled) == stacks_of(whole)
    for key, curve in curves_of(whole, stacks_of(whole)).items():
        assert np.array_equal(curves_of(shuffled, stacks_of(shuffled))[key].values, curve.values)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("encoder.layer", "encoder.layer", True),
        ("bert.encoder.layer", "encoder.layer", True),
        ("encoder.layer", "bert.encoder.layer", True),
        ("myencoder.layer", "encoder.layer", False),
        ("encoder.layers", "encoder.layer", False),
        ("decoder.layer", "encoder.layer", False),
        ("encoder.layer.self", "encoder.layer", False),
    ],
)
def test_names_correspond_up_to_a_prefix(a: str, b: str, same: bool) -> None:
    assert correspond(a, b) == same


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (["encoder.layer"], ["bert.encoder.layer"], {"encoder.layer": "bert.encoder.layer"}),
        (["encoder", "decoder"], ["m.decoder", "m.encoder"], {"encoder": "m.encoder", "decoder": "m.decoder"}),
        (["encoder", "decoder"], ["m.decoder", "m.other"], None),
        (["encoder"], ["encoder", "decoder"], None),
        (["encoder", "m.encoder"], ["n.encoder", "m.encoder"], {"m.encoder": "m.encoder", "encoder": "n.encoder"}),
        ([], [], {}),
    ],
    ids=["prefix", "two prefixes", "one without", "unequal number", "equal names go first", "none"],
)
def test_match_stacks(a: list[str], b: list[str], expected: dict[str, str] | None) -> None:
    assert match_stacks(a, b) == expected


@given(st.sets(NAMES, max_size=5), st.sets(NAMES, max_size=5))
@LAW
def test_matching_is_one_to_one_and_of_corresponding_names(a: set[str], b: set[str]) -> None:
    matched = match_stacks(sorted(a), sorted(b))
    if matched is not None:
        assert set(matched) == a
        assert sorted(matched.values()) == sorted(b)
        assert all(correspond(one, other) for one, other in matched.items())


@given(st.sets(NAMES, max_size=5), st.sampled_from(["", "x.", "model.text."]))
@LAW
def test_a_common_prefix_changes_nothing(names: set[str], prefix: str) -> None:
    expected = {name: prefix + name for name in names}
    if not prefix:
        assert match_stacks(sorted(names), sorted(names)) == expected
    else:
        assert match_stacks(sorted(names), sorted(expected.values())) is not None
