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
    assert test.log10_factor == pytest.approx(math.log10(4 * (5 * 4) * (5 * 2)))


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


def ranks(energies: np.ndarray) -> np.ndarray:
    """Codes of heads [heads, blocks x 8] of energies [layers, units], written without the library."""
    return (2 * stats.rankdata(energies.reshape(-1, 8), axis=-1) - 9).reshape(-1, WIDTH)


@pytest.mark.parametrize("heads", [2, 4], ids=["fewer", "equal"])
def test_matched_statistic_is_of_the_best_partners(heads: int) -> None:
    """b has as many heads or fewer: then it alone chooses, and from the heads of all layers."""
    a, b = model("a", 1, SHAPE, WIDTH), model("b", 2, Shape(5, heads * WIDTH, 48), WIDTH)
    test = by_name(compare_pair(a, b))["v matched heads"]
    one, other = (ranks(np.stack([m.energies[STACK, i, "v"] for i in range(5)])) for m in (a, b))
    inner = one @ other.T
    if heads == 2:
        assert test.statistic == inner.max(axis=0).sum()
        assert test.blocks == 5 * 2 * 4
        assert test.log10_factor == pytest.approx(math.log10(4) + 10 * math.log10(20))
    else:
        layers = np.stack([inner[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] for i in range(5)])
        assert test.statistic == max(layers.max(axis=2).sum(), layers.max(axis=1).sum())
        assert test.blocks == 5 * 4 * 4
        assert test.log10_factor == pytest.approx(math.log10(8 * 2) + 20 * math.log10(4))
    assert test.log10_p >= log10_tail(test.statistic, test.blocks, 8)


def test_many_narrow_heads_prove_together_what_none_proves_alone() -> None:
    """Heads of 8 units: a pair of them cannot have p below 1 / 8! = 2.5e-5."""
    shape = Shape(6, 64, 48)
    base = weights(1, shape)
    order = np.random.default_rng(3).permutation(8)
    units = np.concatenate([np.arange(8 * head, 8 * head + 8) for head in order])
    moved = {key: value[:, units] if key[2] == "o" else value[units] for key, value in tuned(base, 2).items()}
    found = compare_pair(fingerprint("a", base, 8), fingerprint("b", moved, 8))
    tests = by_name(found)
    assert tests["v heads"].log10_p + tests["v heads"].log10_factor > -3
    assert found.pair_log10_p is not None and found.pair_log10_p < -20
    unrelated = compare_pair(fingerprint("a", base, 8), fingerprint("c", weights(5, shape), 8))
    assert unrelated.pair_log10_p is not None and unrelated.pair_log10_p > -3


def test_repeated_heads_count_once() -> None:
    """Two models whose key-value heads were repeated are as unrelated as before."""
    kept = [0, 0, 1, 1, 2, 2, 3, 3]
    for seed in range(10):
        a, b = weights(seed, SHAPE), weights(seed + 100, SHAPE)
        plain, repeated = compared(a, b), compared(with_heads(a, kept), with_heads(b, kept))
        assert by_name(plain)["v whole"].statistic == by_name(repeated)["v whole"].statistic
        assert by_name(plain)["v matched heads"].blocks == by_name(repeated)["v matched heads"].blocks
        (reason,) = [why for why in repeated.reasons if "heads 0, 1 " in why and " in a " in why]
        assert reason == "heads 0, 1 of every layer of model.layers in a are copies of each other (channel v)"


def test_null_of_the_matched_test() -> None:
    """Corrected for its choices it is conservative: 1,000 independent pairs of 3 layers of 3 heads of 8 units."""
    shape = Shape(3, 24, 8)
    prints = [prepare(model(str(seed), seed, shape, 8)) for seed in range(46)]
    p = [
        test.log10_p + test.log10_factor
        for i, a in enumerate(prints)
        for b in prints[:i]
        for test in compare_pair(a, b).tests
        if "matched" in test.name
    ]
    assert len(p) == 2 * 46 * 45 // 2
    assert sum(value <= -1 for value in p) <= 0.1 * len(p) / 8


@pytest.mark.parametrize(
    ("shape", "width", "repeats", "layer"),
    [
        (Shape(1, 32, 24), 8, 8, None),
        (Shape(4, 8, 24), 4, 8, None),
        (Shape(1, 16, 24), 16, 32, None),
        (Shape(6, 4 * 32, 24), 32, 1, 2),
    ],
    ids=["narrow", "narrower", "one head", "all heads of one layer"],
)
def test_unrelated_models_of_repeated_heads_are_not_linked(
    shape: Shape, width: int, repeats: int, layer: int | None
) -> None:
    """Independent models of which every head is there several times, or one layer is one head many times."""

    def written_out(own: Weights) -> Weights:
        found = dict(own)
        for key, value in own.items():
            heads = (value.T if key[2] == "o" else value).reshape(-1, width, shape.hidden)
            if layer is None:
                heads = np.repeat(heads, repeats, axis=0)
            elif key[1] == layer:
                heads = np.repeat(heads[:1], len(heads), axis=0)
            whole = heads.reshape(-1, shape.hidden)
            found[key] = whole.T if key[2] == "o" else whole
        return found

    def strong(seed: int) -> Weights:
        """Rows of V and the columns of O that read them of one strength each, as training leaves them."""
        strength = np.random.default_rng(seed + 10**6).lognormal(sigma=0.3, size=(shape.layers, shape.units))
        own = weights(seed, shape)
        for key, value in own.items():
            if key[2] in "vo":
                own[key] = value * (strength[key[1]] if key[2] == "o" else strength[key[1]][:, None])
        return own

    prints = [prepare(fingerprint(str(seed), written_out(strong(seed)), width)) for seed in range(16)]
    p = [compare_pair(a, b).pair_log10_p for i, a in enumerate(prints) for b in prints[:i]]
    found = [value for value in p if value is not None]
    assert found, "some test is left"
    assert min(found) > -4, sorted(found)[:5]


def test_one_side_with_repeated_heads_does_not_choose_one_partner_for_all() -> None:
    shape = Shape(1, 32 * 8, 24)

    def repeated(seed: int) -> Weights:
        return {k: np.tile(v[:8], (32, 1)) if k[2] == "v" else v for k, v in weights(seed, shape).items()}

    one = [prepare(fingerprint(f"a{seed}", repeated(seed), 8)) for seed in range(12)]
    other = [prepare(fingerprint(f"b{seed}", weights(seed + 1000, shape), 8)) for seed in range(12)]
    p = [compare_pair(a, b).pair_log10_p or 0.0 for a in one for b in other]
    assert min(p) > -4
