"""The tests of one pair: whole and layer by layer, what each pays, which layers belong together, what is refused."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from compare.build import (
    LAW,
    STACK,
    Shape,
    chi_square,
    fingerprint,
    model,
    relayered,
    tuned,
    weights,
    with_energies,
    without,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightprint.compare import compare_pair, prepare
from weightprint.compare.exact import log10_tail
from weightprint.compare.layers import order_tests
from weightprint.data import Comparison, Fingerprint, Test

EIGHT = Shape(8, 128, 48)
ENCODER, DECODER = Shape(4, 64, 48, "encoder.layers"), Shape(6, 64, 48, "decoder.layers")


def by_name(found: Comparison) -> dict[str, Test]:
    named = {test.name: test for test in found.tests}
    assert len(named) == len(found.tests), "names of tests are unique"
    return named


def layers_of(found: Comparison) -> list[tuple[int, int]]:
    return [(a, b) for a, b, _ in found.layer_map]


def rank_product(x: np.ndarray, y: np.ndarray, block: int) -> int:
    """T of two layers from ranks, written without the library."""
    ranks = [2 * stats.rankdata(own.reshape(-1, block), axis=1) - (block + 1) for own in (x, y)]
    return int((ranks[0] * ranks[1]).sum())


def test_whole_and_layer_statistics_from_ranks() -> None:
    a, b = model("a", 1, EIGHT), model("b", 2, EIGHT)
    found = by_name(compare_pair(a, b))
    assert set(found) == {"v whole", "v layers", "v heads", "v matched heads"} | {
        *("o whole", "o layers", "o heads", "o matched heads")
    }
    for channel in "vo":
        product = np.array(
            [
                [rank_product(a.energies[STACK, i, channel], b.energies[STACK, j, channel], 8) for j in range(8)]
                for i in range(8)
            ]
        )
        whole, layers = found[f"{channel} whole"], found[f"{channel} layers"]
        assert (whole.statistic, whole.blocks) == (np.trace(product), 8 * 16)
        assert (layers.statistic, layers.blocks) == (product.max(), 16)
        for test in (whole, layers):
            assert test.z == pytest.approx(test.statistic / 168 * math.sqrt(7 / test.blocks))
            assert test.log10_p == log10_tail(test.statistic, test.blocks, 8)


def test_every_test_of_the_pair_is_paid_for() -> None:
    """Eight tests; a layer test pays for its 64 layer pairs on top, a head test for the 8 x 8 pairs of heads of each of
    8 layers, the matched test for 8 ways to choose for each of the 8 x 8 heads of either side. The pair's p is the
    smallest of the products."""
    prints = [prepare(model(f"m{seed}", seed, Shape(8, 128, 16))) for seed in range(4)]
    for a, b in itertools.combinations(prints, 2):
        found = compare_pair(a, b)
        for test in found.tests:
            paid = {"whole": 1, "layers": 64, "heads": 8 * 64, "matched": 2 * 8**64}[test.name.split()[1]]
            assert test.log10_factor == pytest.approx(math.log10(8 * paid), rel=1e-12)
        smallest = min(test.log10_p + test.log10_factor for test in found.tests)
        assert found.pair_log10_p == min(0.0, smallest)
        assert found.log10_p == found.pair_log10_p


def test_stack_pairs_are_paid_for() -> None:
    """Two stacks a side, all of 64 units: four stack pairs, of which two are equally deep, in two channels."""
    both = [{**weights(seed, ENCODER), **weights(seed + 1, DECODER)} for seed in (1, 3)]
    found = by_name(compare_pair(fingerprint("a", both[0]), fingerprint("b", both[1])))
    assert len(found) == 2 * (4 + 4 + 4 + 2)
    assert "v whole [encoder.layers ~ encoder.layers]" in found
    assert "o layers [encoder.layers ~ decoder.layers]" in found
    assert "v whole [encoder.layers ~ decoder.layers]" not in found
    for name, test in found.items():
        one, other = name.split("[")[1].rstrip("]").split(" ~ ")
        depth = {"encoder.layers": 4, "decoder.layers": 6}
        layer_pairs = depth[one] * depth[other] if "layers [" in name else 1
        if " heads [" in name:
            # Of equally deep stacks those of equal layers, else all; 4 heads a layer.
            layer_pairs = 16 * (depth[one] if one == other else depth[one] * depth[other])
        if "matched" in name:
            layer_pairs = 2 * 4 ** (4 * depth[one]) if one == other else (4 * 6) ** (4 * 4)
        assert test.log10_factor == pytest.approx(math.log10(28 * layer_pairs), rel=1e-12)


def test_one_layer_against_one_layer_is_tested_once() -> None:
    found = compare_pair(model("a", 1, Shape(1), 64), model("b", 2, Shape(1), 64))
    assert set(by_name(found)) == {"v whole", "o whole"}, "one head of 64 units is the layer"
    assert {test.log10_factor for test in found.tests} == {math.log10(2)}


def test_one_layer_against_several_pays_for_each() -> None:
    found = compare_pair(model("a", 1, Shape(1), 64), model("b", 2, Shape(5), 64))
    assert set(by_name(found)) == {"v layers", "o layers"}
    assert {test.log10_factor for test in found.tests} == {math.log10(2 * 5)}


def test_widths_that_vary_within_a_stack_are_tested_group_by_group() -> None:
    """Layers 0-2 have 64 units, layers 3-5 128: two groups a channel; only heads of one width meet the other."""
    own = [weights(seed, Shape(3)) for seed in (1, 2)]
    for seed, one in zip((11, 12), own, strict=True):
        wide = weights(seed, Shape(3, 128))
        one.update({(STACK, layer + 3, role): value for (_, layer, role), value in wide.items()})
    found = by_name(compare_pair(fingerprint("a", own[0]), fingerprint("b", own[1])))
    assert len(found) == 2 * (2 * 4 + 2 * 2)
    assert found["v whole (64 units)"].blocks == 3 * 8
    assert found["v whole (128 units)"].blocks == 3 * 16
    assert found["v layers (64 units)"].log10_factor == pytest.approx(math.log10(24 * 9))
    assert found["v heads (64 ~ 128 units)"].log10_factor == pytest.approx(math.log10(24 * 9 * 4 * 8))


def test_smallest_p_is_found_among_unequal_numbers_of_blocks() -> None:
    """A layer pair that lost blocks may have the smaller T and yet the smaller p, as here."""
    generator = np.random.default_rng(11)
    a, b = generator.random((6, 256)), generator.random((6, 256))
    for values in (a, b):
        for row in range(6):
            values[row, generator.permutation(256)[: 3 * row]] = np.nan
    (layers,) = [
        test
        for test in compare_pair(
            with_energies("a", a.astype(np.float32)), with_energies("b", b.astype(np.float32))
        ).tests
        if "layers" in test.name
    ]
    expected = []
    for x in a:
        for y in b:
            free = np.isfinite(x.reshape(-1, 8)).all(axis=1) & np.isfinite(y.reshape(-1, 8)).all(axis=1)
            product = rank_product(x.reshape(-1, 8)[free], y.reshape(-1, 8)[free], 8)
            expected.append((log10_tail(product, int(free.sum()), 8), product))
    smallest, statistic = min(expected)
    assert (layers.log10_p, layers.statistic) == (smallest, statistic)
    assert statistic < max(product for _, product in expected)


def test_tuned_model_maps_each_layer_to_itself() -> None:
    base = weights(1, EIGHT)
    found = compare_pair(fingerprint("a", base), fingerprint("b", tuned(base, 2)))
    assert layers_of(found) == [(layer, layer) for layer in range(8)]
    assert all(z > 5 for _, _, z in found.layer_map)
    best = by_name(found)["v whole"]
    assert best.log10_p < -100


@pytest.mark.parametrize(
    "sources",
    [
        [7, 6, 5, 4, 3, 2, 1, 0],
        [0, 1, 3, 4, 6, 7],
        [2],
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7],
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7],
        [3, 3, 1, 7],
    ],
    ids=["reversed", "dropped", "one kept", "up-scaled", "each twice", "mixture"],
)
@pytest.mark.parametrize("later", ["copied", "tuned"])
def test_layers_are_found_wherever_they_went(sources: list[int], later: str) -> None:
    """Depth or order differ: the layer test finds the origin, the map every layer's partner."""
    base = weights(1, EIGHT)
    moved = relayered(base, sources)
    child = fingerprint("child", tuned(moved, 2) if later == "tuned" else moved)
    found = compare_pair(fingerprint("base", base), child)
    assert found.pair_log10_p is not None
    assert found.pair_log10_p < -12
    if later == "tuned":
        # Tuned copies are of unequal strength: each layer of either side shows its best partner.
        assert {b for _, b in layers_of(found)} == set(range(len(sources)))
        assert all(sources[b] == a for a, b in layers_of(found))
    else:
        assert set(layers_of(found)) <= {(source, layer) for layer, source in enumerate(sources)}
        assert {b for _, b in layers_of(found)} == set(range(len(sources)))
        assert {a for a, _ in layers_of(found)} == set(sources)
    mirrored = compare_pair(child, fingerprint("base", base))
    assert sorted((b, a) for a, b in layers_of(mirrored)) == layers_of(found)
    assert mirrored.pair_log10_p == found.pair_log10_p


def test_unequal_depth_has_no_whole_test() -> None:
    base = weights(1, EIGHT)
    found = compare_pair(fingerprint("a", base), fingerprint("b", relayered(base, range(6))))
    assert set(by_name(found)) == {
        f"{channel} {what}" for channel in "vo" for what in ("layers", "heads", "matched heads")
    }
    assert found.pair_log10_p is not None
    assert found.pair_log10_p < -50


def test_map_of_independent_models_is_empty() -> None:
    assert compare_pair(model("a", 1, EIGHT), model("b", 2, EIGHT)).layer_map == ()


def test_map_is_of_the_stacks_with_the_best_test() -> None:
    """The encoders share layers too, in another order; the decoders' evidence is stronger and the map is theirs."""
    encoder, decoder = weights(1, ENCODER), weights(2, DECODER)
    a = fingerprint("a", {**encoder, **decoder})
    b = fingerprint("b", {**relayered(encoder, [3, 2, 1, 0], ENCODER.stack), **tuned(decoder, 4)})
    found = compare_pair(a, b)
    assert layers_of(found) == [(layer, layer) for layer in range(6)]


def test_map_names_layers_as_the_checkpoint_does() -> None:
    base = weights(1, EIGHT)
    shifted = {(STACK, layer + 1, role): value for (_, layer, role), value in base.items()}
    found = compare_pair(fingerprint("from 0", base), fingerprint("from 1", shifted))
    assert layers_of(found) == [(layer, layer + 1) for layer in range(8)]
    assert by_name(found)["v whole"].blocks == 8 * 16, "the whole test pairs by position, not by number"


@pytest.mark.parametrize("layers", [[3], [0], [0, 7], [2, 5]], ids=str)
def test_hole_shifts_nothing(layers: list[int]) -> None:
    base = weights(1, EIGHT)
    found = compare_pair(without(fingerprint("a", base), layers, "vo"), fingerprint("b", tuned(base, 2)))
    rest = [layer for layer in range(8) if layer not in layers]
    assert layers_of(found) == [(layer, layer) for layer in rest]
    whole = by_name(found)["v whole"]
    assert whole.blocks == len(rest) * 16
    assert whole.z > 15


def test_holes_on_both_sides_meet_only_where_both_were_read() -> None:
    base = weights(1, EIGHT)
    a, b = without(fingerprint("a", base), [0, 1], "vo"), without(fingerprint("b", tuned(base, 2)), [1, 2], "vo")
    assert by_name(compare_pair(a, b))["v whole"].blocks == 5 * 16


def test_channel_missing_on_one_side_is_said() -> None:
    base = weights(1, EIGHT)
    found = compare_pair(without(fingerprint("a", base), range(8), "o"), fingerprint("b", tuned(base, 2)))
    assert set(by_name(found)) == {"v whole", "v layers", "v heads", "v matched heads"}
    assert "a has no units of channel o" in found.reasons
    assert [test.log10_factor for test in found.tests] == pytest.approx(
        [math.log10(4 * pairs) for pairs in (1, 64, 8 * 64, 2 * 8**64)]
    )


def test_unequal_unit_counts_are_said() -> None:
    """Nothing meets where heads are of unknown or of other width."""
    a = model("a", 1, Shape(4, 64), 16)
    for width, called in ((None, "unknown width"), (32, "32")):
        found = compare_pair(a, model("b", 2, Shape(4, 128), width))
        assert (found.tests, found.pair_log10_p) == ((), None)
        assert f"unit counts differ: v 64 against 128, in heads of 16 and {called}" in found.reasons
        assert f"unit counts differ: o 64 against 128, in heads of 16 and {called}" in found.reasons


def test_other_head_width_asks_for_shorter_blocks() -> None:
    """Heads of 16 and of 12: blocks of 4 fit into both."""
    shape = Shape(4, 96)
    base = weights(1, shape)
    found = by_name(compare_pair(fingerprint("a", base, 16), fingerprint("b", base, 12)))
    assert found["v whole"].blocks == 4 * 96 // 4
    assert found["v whole"].statistic == 4 * 96 // 4 * 20
    assert found["v whole"].log10_p == pytest.approx(-96 * math.log10(24))
    assert by_name(compare_pair(fingerprint("a", base, 16), fingerprint("b", base, None)))["v whole"].blocks == 48


@pytest.mark.parametrize(("width", "other"), [(1, 1), (16, 1), (13, 13)], ids=str)
def test_heads_that_give_no_block_are_refused(width: int, other: int) -> None:
    units = 104 if width == 13 else 64
    base = weights(1, Shape(4, units))
    found = compare_pair(fingerprint("a", base, width), fingerprint("b", base, other))
    assert (found.tests, found.pair_log10_p) == ((), None)
    reason = f"channel v: {units} units in heads of {width} and {other} cannot be cut into blocks of 2 to 8"
    assert reason in found.reasons


@pytest.mark.parametrize("spoil", ["ties", "nan"])
def test_no_usable_block_is_said(spoil: str) -> None:
    energies = np.ones((4, 64), np.float32) if spoil == "ties" else np.full((4, 64), np.nan, np.float32)
    found = compare_pair(with_energies("a", energies), with_energies("b", chi_square(1, 4, 64)))
    assert (found.tests, found.pair_log10_p) == ((), None)
    assert "channel v: no block is free of ties and non-finite units on both sides" in found.reasons


def test_lost_blocks_are_counted_for_each_layer_pair() -> None:
    a, b = chi_square(1, 2, 64), chi_square(2, 2, 64)
    a[0, :24] = np.nan
    b[0, 16:40] = 5.0
    whole, _, heads, matched = compare_pair(with_energies("a", a), with_energies("b", b)).tests
    assert whole.blocks == (8 - 5) + 8
    # In layer 0 head 0 of a and head 1 of b have no valid block, and the rest have one in common.
    assert heads.log10_factor == pytest.approx(math.log10(4 * (3 * 3 + 4 * 4)))
    # Those three and the four of layer 1 choose, each from four; which side, whichever has the smaller p.
    assert matched.log10_factor == pytest.approx(math.log10(4 * 2 * 4**7))


def copied(name: str, seed: int, sources: list[int]) -> Fingerprint:
    """Independent layers of 32 blocks, some of them several times."""
    distinct = chi_square(seed, max(sources) + 1, 256)
    return with_energies(name, distinct[sources])


def whole_blocks(a: Fingerprint, b: Fingerprint) -> int:
    return sum(test.blocks for test in order_tests(prepare(a), prepare(b)).tests if "whole" in test.name) // 32


@pytest.mark.parametrize(
    ("a", "b", "counted"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 4),
        ([0, 1, 0, 1], [0, 1, 0, 1], 2),
        ([0, 1, 0, 1], [0, 1, 2, 3], 4),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
        ([0, 0, 1, 1], [0, 1, 0, 1], 3),
        ([0, 1, 0, 2], [0, 0, 1, 2], 4),
    ],
    ids=["none", "both alike", "one side", "one layer shared", "crossed", "chain"],
)
def test_copies_on_both_sides_count_once(a: list[int], b: list[int], counted: int) -> None:
    found = compare_pair(copied("a", 1, a), copied("b", 2, b))
    assert found.tests[0].name == "v whole"
    assert found.tests[0].blocks == 32 * counted
    if counted < 4:
        left_out = f"channel v: {4 - counted} layers that are copies on both sides are counted once"
        assert left_out in found.reasons


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
@LAW
def test_whole_test_keeps_a_largest_forest(sources: list[tuple[int, int]]) -> None:
    """Clusters of copies are nodes, layer pairs are edges: kept is all that closes no cycle."""
    rows, columns = np.array(sources).T
    graph = coo_array((np.ones(len(sources)), (rows, columns + 5)), shape=(10, 10))
    parts, _ = connected_components(graph, directed=False)
    assert whole_blocks(copied("a", 3, rows.tolist()), copied("b", 4, columns.tolist())) == 10 - parts


def test_copies_do_not_hide_a_common_origin() -> None:
    base = weights(1, Shape(4, 128))
    sources = [0, 1, 2, 1, 2, 3]
    a, b = fingerprint("a", relayered(base, sources)), fingerprint("b", relayered(tuned(base, 2), sources))
    found = compare_pair(a, b)
    assert by_name(found)["v whole"].blocks == 4 * 16
    assert found.pair_log10_p is not None
    assert found.pair_log10_p < -100
    assert "channel v: 2 layers that are copies on both sides are counted once" in found.reasons


def test_channels_that_are_not_known_are_not_tested() -> None:
    whole = model("a", 1, EIGHT)
    other = replace(whole, energies={**whole.energies, **{(STACK, 0, "router"): chi_square(1, 64)}})
    assert {test.name.split()[0] for test in compare_pair(other, other).tests} == {"v", "o"}
