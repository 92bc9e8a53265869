"""Comparing in bulk is comparing one by one: every field of every pair, whatever the fingerprints are like."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import (
    LAW,
    STACK,
    Shape,
    Weights,
    chi_square,
    fingerprint,
    model,
    relayered,
    tuned,
    weights,
    without,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from weightprint.compare import compare_all, compare_pair, prepare
from weightprint.compare.comparisons import WORDS, Comparisons
from weightprint.data import Comparison, Fingerprint

SHAPE = Shape(5, 64, 32)
HEADS = 16


@dataclass(frozen=True)
class Recipe:
    """How to make one fingerprint of a random set."""

    seed: int
    layers: int = 4
    units: int = 48
    head_width: int | None = HEADS
    stack: str = STACK
    base: int | None = None
    fault: str = "none"


def pooled(own: Weights, seed: int) -> Weights:
    """Grouped-query attention: two query heads read one value head of HEADS units."""
    generator = np.random.default_rng(seed)
    return {
        (stack, layer, role): np.repeat(value.reshape(len(value), -1, HEADS), 2, axis=1).reshape(len(value), -1)
        * generator.uniform(0.9, 1.1, 2 * value.shape[1])
        if role == "o"
        else value
        for (stack, layer, role), value in own.items()
    }


def wrong_side(own: Weights, seed: int) -> dict[tuple[str, int, str], npt.NDArray[np.float32]]:
    """Channel v in an order that all layers share, as where square matrices were read transposed."""
    shared = np.random.default_rng(seed).lognormal(sigma=0.18, size=len(next(iter(own.values()))))
    return {key: (chi_square(seed + key[1], len(shared)) * shared).astype(np.float32) for key in own if key[2] == "v"}


def two_stacks(own: Weights, seed: int) -> Weights:
    """A decoder beside the encoder, of another depth."""
    units, hidden = next(iter(own.values())).shape
    return {**own, **weights(seed + 1000, Shape(2, units, hidden, "decoder.layers"))}


def spoilt(of: Fingerprint, value: float, layers: Sequence[int]) -> Fingerprint:
    """One unit of channel v is ``value`` in each of these layers; 0 means that it ties with its neighbour."""
    energies = dict(of.energies)
    for key, row in of.energies.items():
        if key[1] in layers and key[2] == "v":
            energies[key] = row.copy()
            energies[key][3] = value or row[2]
    return replace(of, energies=energies)


def made(name: str, recipe: Recipe) -> Fingerprint:
    """The fingerprint of a recipe."""
    shape = Shape(recipe.layers, recipe.units, 16, recipe.stack)
    own = weights(recipe.seed if recipe.base is None else recipe.base, shape)
    own = own if recipe.base is None else tuned(own, recipe.seed)
    width, fault = recipe.head_width, recipe.fault
    if fault == "grouped":
        return fingerprint(name, pooled(own, recipe.seed), width)
    if fault == "two-stacks":
        return fingerprint(name, two_stacks(own, recipe.seed), width)
    if fault == "copied":
        return fingerprint(name, relayered(own, [0, 0, *range(1, recipe.layers)], recipe.stack), width)
    if fault == "transposed":  # seen only with some layers and units
        own = weights(recipe.seed, Shape(9, 96, 16, recipe.stack))
        return fingerprint(name, own, width, energies=wrong_side(own, recipe.seed))
    whole = fingerprint(name, own, width)
    return {
        "none": whole,
        "hole": without(whole, [1]),
        "no-v": without(whole, range(recipe.layers), "v"),
        "no-q": without(whole, [0], "q"),
        "tie": spoilt(whole, 0, [0]),
        "nan": spoilt(whole, float("nan"), range(recipe.layers)),
        "constant": replace(whole, matrices=tuple(replace(m, std=0.5) for m in whole.matrices)),
        "partial": replace(without(whole, [2]), status="partial", code="E_READ", reason=f"layer 2 of {name} is gone"),
        "failed": replace(whole, status="failed", code="E_READ", reason="the disk went away"),
        "empty": replace(whole, matrices=(), energies={}),
    }[fault]


FAULTS = ["none", "none", "none", "hole", "no-v", "no-q", "tie", "nan", "constant", "partial", "failed", "empty"]
RECIPES = st.builds(
    Recipe,
    seed=st.integers(0, 2**16),
    layers=st.sampled_from([3, 4, 4, 4, 7]),
    units=st.sampled_from([48, 48, 48, 32]),
    head_width=st.sampled_from([HEADS, HEADS, None, 24, 12, 6]),
    stack=st.sampled_from([STACK, STACK, "layers", "h"]),
    base=st.sampled_from([None, None, None, 1]),
    fault=st.sampled_from([*FAULTS, "grouped", "two-stacks", "copied", "transposed"]),
)


def one_by_one(prints: Sequence[Fingerprint], pairs: Sequence[tuple[int, int]]) -> tuple[Comparison, ...]:
    ready = [prepare(own) for own in prints]
    return tuple(compare_pair(ready[a], ready[b]) for a, b in pairs)


def check(found: Comparisons, expected: Sequence[Comparison]) -> None:
    """Equal in every field, and the columns say the same."""
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own == other
    figures = found.figures
    assert [WORDS[word] for word in figures.words] == [pair.verdict for pair in expected]
    for column, values in (
        (figures.pair_log10_p, [pair.pair_log10_p for pair in expected]),
        (figures.scores, [pair.screen.score for pair in expected]),
    ):
        assert [None if np.isnan(value) else value for value in column.tolist()] == values


@given(st.lists(RECIPES, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(LAW, max_examples=80)
def test_bulk_is_one_by_one(recipes: list[Recipe], random: "np.random.Generator") -> None:
    prints = [made(f"m{number}", recipe) for number, recipe in enumerate(recipes)]
    pairs = list(itertools.permutations(range(len(prints)), 2))
    random.shuffle(pairs)
    check(compare_all(prints, pairs), one_by_one(prints, pairs))


@pytest.mark.parametrize("fault", sorted({*FAULTS, "grouped", "two-stacks", "copied", "transposed"}))
@pytest.mark.parametrize("head_width", [HEADS, 24, 6, None], ids=str)
def test_kinds_of_fingerprints(fault: str, head_width: int | None) -> None:
    """Two of a kind, unrelated, beside regular ones of equal and unequal depth."""
    recipes = [Recipe(seed, head_width=head_width, fault=fault) for seed in (1, 2)]
    recipes += [Recipe(3), Recipe(4, head_width=12), Recipe(5, layers=6), Recipe(6, head_width=None)]
    prints = [made(f"m{number}", recipe) for number, recipe in enumerate(recipes)]
    pairs = list(itertools.combinations(range(len(prints)), 2))
    check(compare_all(prints, pairs), one_by_one(prints, pairs))


@pytest.mark.parametrize(("device", "many"), [("cpu", 4096), ("cpu", 0), ("torch-cpu", 0)])
def test_regular_pairs_are_decided_in_bulk(device: str, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrelated regular models of one shape, or of two, leave no pair to be compared one by one."""
    monkeypatch.setattr("weightprint.compare.products.FEWEST_TO_COMPILE", many)
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(5)]
    prints += [model(f"d{seed}", seed + 50, Shape(7, 64, 32)) for seed in range(3)]
    prints += [model("wide", 99, Shape(5, 128, 32)), model("unknown", 98, SHAPE, head_width=None)]
    pairs = list(itertools.combinations(range(len(prints)), 2))
    found = compare_all(prints, pairs, device)
    assert not found.made_one_by_one
    check(found, one_by_one(prints, pairs))


def test_what_is_found_is_compared_one_by_one() -> None:
    base = weights(1, SHAPE)
    prints = [fingerprint("base", base), fingerprint("child", tuned(base, 2)), model("other", 3, SHAPE)]
    prints.append(fingerprint("upscaled", relayered(tuned(base, 4), [0, 1, 2, 2, 3, 4])))
    pairs = [(2, 0), (0, 1), (3, 0), (2, 1), (2, 3)]
    found = compare_all(prints, pairs)
    assert set(found.made_one_by_one) == {1, 2, 4}
    check(found, one_by_one(prints, pairs))
    assert found[1].layer_map
    assert found[2].layer_map


def test_no_pair_and_no_fingerprint() -> None:
    assert compare_all([], []) == ()
    assert compare_all([model("a", 1, SHAPE)], []) == ()


@pytest.mark.parametrize("rows", [1, 3])
def test_tiles_of_any_size_give_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(8)]
    pairs = list(itertools.combinations(range(8), 2))
    whole = tuple(compare_all(prints, pairs))
    monkeypatch.setattr("weightprint.compare.products.TILE_BYTES", rows * 4 * 5 * 64)
    assert compare_all(prints, pairs) == whole


def test_rows_that_are_no_neighbours() -> None:
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(6)]
    pairs = [(0, 2), (0, 5), (3, 5), (0, 1)]
    check(compare_all(prints, pairs), one_by_one(prints, pairs))


def test_slices_and_ends_of_the_sequence() -> None:
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(4)]
    pairs = list(itertools.combinations(range(4), 2))
    found = compare_all(prints, pairs)
    assert found[-1] == found[5]
    assert found[1:3] == (found[1], found[2])
    with pytest.raises(IndexError):
        found[6]


def test_equal_standard_deviations_are_looked_at_one_by_one() -> None:
    """Bit-equal curves may mean bit-equal weights, which only the fingerprints can tell."""
    one, other = model("a", 1, SHAPE), model("b", 2, SHAPE)
    twin = replace(one, name="b", energies=model("c", 3, SHAPE).energies)
    assert tuple(compare_all([one, other], [(0, 1)]).made_one_by_one) == ()
    assert tuple(compare_all([one, twin], [(0, 1)]).made_one_by_one) == (0,)
