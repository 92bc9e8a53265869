"""Columns of O that move together are one unit: the test stays valid under grouped-query attention."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import STACK, Shape, fingerprint, model, weights
from scipy import stats

from weightprint.compare import compare_pair, order_codes, prepare
from weightprint.compare.blocks import largest
from weightprint.compare.units import exchangeable_units
from weightprint.data import Fingerprint

WIDTH, VALUE_HEADS, SHARED, LAYERS = 16, 4, 4, 5


def grouped(name: str, seed: int, head_width: int | None = WIDTH, log_scale: float = 0.3) -> Fingerprint:
    """An independent model in which every row of V and the columns of O that read it are scaled together."""
    generator = np.random.default_rng(seed)
    rows, hidden = VALUE_HEADS * WIDTH, 32
    of = {}
    for layer in range(LAYERS):
        scale = np.exp(log_scale * generator.normal(size=(VALUE_HEADS, 1, WIDTH)))
        columns = np.broadcast_to(scale, (VALUE_HEADS, SHARED, WIDTH)).reshape(-1)
        of[STACK, layer, "q"] = generator.normal(size=(rows * SHARED, hidden))
        of[STACK, layer, "k"] = generator.normal(size=(rows, hidden))
        of[STACK, layer, "v"] = generator.normal(size=(rows, hidden)) * scale.reshape(-1, 1)
        of[STACK, layer, "o"] = generator.normal(size=(hidden, rows * SHARED)) * columns
    return fingerprint(name, of, head_width)


def single(energies: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return order_codes(energies, 8).astype(np.float64).reshape(-1)


def test_columns_of_one_value_row_are_summed() -> None:
    of = grouped("a", 1)
    found = exchangeable_units(of)
    own = of.energies[STACK, 2, "o"].astype(np.float64)
    for head in range(VALUE_HEADS):
        for unit in range(WIDTH):
            columns = [(head * SHARED + number) * WIDTH + unit for number in range(SHARED)]
            expected = np.float32(own[columns].sum())
            assert found.energies[STACK, 2, "o"][head * WIDTH + unit] == expected
    assert found.energies[STACK, 2, "v"] is of.energies[STACK, 2, "v"]
    assert not found.left_out


def test_a_non_finite_column_costs_its_unit() -> None:
    of = grouped("a", 1)
    holed = of.energies[STACK, 0, "o"].copy()
    holed[SHARED * WIDTH + 3] = np.nan
    found = exchangeable_units(replace(of, energies={**of.energies, (STACK, 0, "o"): holed}))
    assert np.flatnonzero(np.isnan(found.energies[STACK, 0, "o"])).tolist() == [WIDTH + 3]


def test_independent_models_give_uniform_p_values() -> None:
    """Column by column the same models would be told apart from chance far too often."""
    prepared = [prepare(grouped(f"m{seed}", seed)) for seed in range(60)]
    pairs = [(a, b) for a in range(60) for b in range(a)]
    channel = [next(group for group in side.groups if group.channel == "o") for side in prepared]
    assert all(group.units == VALUE_HEADS * WIDTH for group in channel)
    raw = [
        np.concatenate([single(side.fingerprint.energies[STACK, layer, "o"]) for layer in range(LAYERS)])
        for side in prepared
    ]
    blocks = len(raw[0]) / 8
    z_raw = np.array([raw[a] @ raw[b] for a, b in pairs]) / (largest(8) * np.sqrt(blocks / 7))
    assert z_raw.std() > 1.25
    whole = [
        next(test for test in compare_pair(prepared[a], prepared[b]).tests if test.name == "o whole") for a, b in pairs
    ]
    assert {test.blocks for test in whole} == {LAYERS * VALUE_HEADS * WIDTH // 8}
    z = np.array([test.z for test in whole])
    assert 0.93 < z.std() < 1.07
    # Pairs of 60 models are not independent of each other, so every model takes part once.
    p = [10**test.log10_p for (a, b), test in zip(pairs, whole, strict=True) if a == b + 1 and a % 2]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_related_pair_is_still_found_by_pooled_columns() -> None:
    generator = np.random.default_rng(5)
    of = grouped("parent", 7)
    energies = {
        key: (own * generator.uniform(0.99, 1.01, own.shape)).astype(np.float32) for key, own in of.energies.items()
    }
    child = replace(of, name="child", energies=energies)
    found = {test.name: test.log10_p for test in compare_pair(of, child).tests}
    assert found["o whole"] < -30


def test_without_the_width_of_a_head_the_columns_are_left_out() -> None:
    a, b = grouped("a", 1, head_width=None), grouped("b", 2, head_width=None)
    outcome = compare_pair(a, b)
    assert {test.name for test in outcome.tests} == {"v whole", "v layers"}
    reason = f"channel o of {STACK} in a is not used in {LAYERS} layers: {SHARED} query heads share a value head"
    assert any(reason in line for line in outcome.reasons)


@pytest.mark.parametrize("head_width", [16, None])
def test_one_value_head_for_each_query_head_stays_as_it_is(head_width: int | None) -> None:
    of = model("a", 1, head_width=head_width)
    found = exchangeable_units(of)
    assert all(found.energies[key] is own for key, own in of.energies.items())
    assert found.energies.keys() == of.energies.keys()
    assert found.left_out == ()


def test_columns_whose_values_were_not_read_are_left_out() -> None:
    of = model("a", 1)
    matrices = tuple(matrix for matrix in of.matrices if (matrix.layer, matrix.role) != (3, "v"))
    energies = {key: own for key, own in of.energies.items() if key[1:] != (3, "v")}
    found = exchangeable_units(replace(of, matrices=matrices, energies=energies))
    assert (STACK, 3, "o") not in found.energies
    assert (STACK, 2, "o") in found.energies
    assert "layer 3: its values were not read" in found.left_out[0].sentence("a")


def test_latent_values_belong_to_one_query_head_each() -> None:
    of = model("a", 1)
    matrices = tuple(replace(m, role="kv_b") if m.role == "v" else m for m in of.matrices if m.role != "k")
    energies = {key: own for key, own in of.energies.items() if key[2] == "o"}
    found = exchangeable_units(replace(of, matrices=matrices, energies=energies))
    assert found.energies.keys() == energies.keys()


def test_columns_that_no_row_count_explains_are_left_out() -> None:
    shape = Shape()
    of = fingerprint("a", weights(1, shape))
    odd = {key: (own[:-16] if key[2] == "o" else own) for key, own in of.energies.items()}
    found = exchangeable_units(replace(of, energies=odd))
    assert {channel for _, _, channel in found.energies} == {"v"}
    assert "no multiple of the 64 rows of V" in found.left_out[0].sentence("a")
