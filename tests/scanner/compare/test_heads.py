"""Heads that were pruned, moved or regrouped are found and mapped, and each pair of heads is paid for."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from compare.build import STACK, Shape, Weights, fingerprint, model, relayered, tuned, weights
from scipy import stats

from weightprint.compare import compare_pair, prepare
from weightprint.compare.exact import log10_tail
from weightprint.compare.heads import head_extremes, meeting_rows, pairs_of_parts
from weightprint.data import Comparison, Test

WIDTH = 32
SHAPE = Shape(5, 4 * WIDTH, 48)


def with_heads(base: Weights, kept: Sequence[int]) -> Weights:
    """The same model with these heads, in this order."""
    units = np.concatenate([np.arange(head * WIDTH, (head + 1) * WIDTH) for head in kept])
    return {key: value[:, units] if key[2] == "o" else value[units] for key, value in base.items()}


def compared(a: Weights, b: Weights, width: int | None = WIDTH) -> Comparison:
    return compare_pair(fingerprint("a", a, width), fingerprint("b", b, width))


def by_name(found: Comparison) -> dict[str, Test]:
    return {test.name: test for test in found.tests}


@pytest.mark.parametrize("kept", [[2], [0, 3], [3, 2, 1, 0], [1, 0, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]], ids=str)
def test_heads_are_found_where_they_went(kept: list[int]) -> None:
    base = weights(1, SHAPE)
    found = compared(base, with_heads(tuned(base, 2), kept))
    assert found.pair_log10_p is not None
    # A head of 4 blocks in place gives (8!)^-4 = 1e-18; drift and corrections take some of it.
    assert found.pair_log10_p < -7
    assert found.layer_map and all(i == j for i, j, _ in found.layer_map)
    pairs = {(i, head, j, other) for i, head, j, other, _ in found.head_map}
    assert pairs <= {(layer, head, layer, place) for layer in range(5) for place, head in enumerate(kept)}
    assert {(j, other) for _, _, j, other in pairs} >= {(j, place) for j, _, _ in found.layer_map for place in (0,)}


def test_no_map_of_heads_that_are_where_their_layer_says() -> None:
    base = weights(1, SHAPE)
    for child in (tuned(base, 2), relayered(base, [0, 2, 4])):
        found = compared(base, child)
        assert found.pair_log10_p is not None and found.pair_log10_p < -20
        assert found.head_map == ()


def test_heads_moved_with_their_layers() -> None:
    """Layers dropped and heads permuted: all heads of all layers meet, as depths differ."""
    base = weights(1, SHAPE)
    found = compared(base, with_heads(relayered(base, [0, 2, 4]), [1, 2, 3, 0]))
    assert [(i, j) for i, j, _ in found.layer_map] == [(0, 0), (2, 1), (4, 2)]
    expected = {(2 * j, head, j, place) for j in range(3) for place, head in enumerate([1, 2, 3, 0])}
    assert {entry[:4] for entry in found.head_map} == expected


def test_statistic_is_the_best_of_all_pairs_of_heads() -> None:
    a, b = model("a", 1, SHAPE, WIDTH), model("b", 2, Shape(5, 2 * WIDTH, 48), WIDTH)
    test = by_name(compare_pair(a, b))["v heads"]

    def ranks(energies: np.ndarray) -> np.ndarray:
        return 2 * stats.rankdata(energies.reshape(-1, WIDTH // 8, 8), axis=-1) - 9

    one, other = (np.concatenate([ranks(m.energies[STACK, i, "v"]) for i in range(5)]) for m in (a, b))
    assert test.statistic == np.einsum("imn,jmn->ij", one, other).max()
    assert test.blocks == WIDTH // 8
    assert test.log10_p == log10_tail(test.statistic, 4, 8)
    assert test.log10_factor == pytest.approx(math.log10(2 * (5 * 4) * (5 * 2)))


def test_heads_of_equal_layers_where_shapes_agree() -> None:
    a, b = (prepare(model(name, seed, SHAPE, WIDTH)).groups[0] for name, seed in (("a", 1), ("b", 2)))
    assert meeting_rows(a, b) == tuple((row, (row,)) for row in range(5))
    assert pairs_of_parts(a, b) == 5 * 4 * 4 == head_extremes(a, b, 8).pairs


def test_one_head_is_no_part() -> None:
    a, b = (prepare(model(name, seed, Shape(3, WIDTH, 48), WIDTH)).groups[0] for name, seed in (("a", 1), ("b", 2)))
    assert (meeting_rows(a, b), pairs_of_parts(a, b), head_extremes(a, b, 8).pairs) == ((), 0, 0)


def test_unrelated_models_of_other_widths_are_tested_and_not_linked() -> None:
    """The smallest corrected p of 200 unrelated pairs, of which 0.2 are expected at or below 0.001."""
    sides = [
        [prepare(model(f"{units}-{seed}", seed + units, Shape(3, units, 24), WIDTH)) for seed in range(number)]
        for units, number in ((64, 10), (96, 20))
    ]
    p = [compare_pair(a, b).pair_log10_p for a in sides[0] for b in sides[1]]
    found = [value for value in p if value is not None]
    assert len(found) == 200
    assert min(found) > -4
    assert sum(value <= -1 for value in found) <= 40, "Bonferroni errs to one side"
