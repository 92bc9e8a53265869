"""Self-control: independent layers pass, a common order is refused and said, copies are found and count once."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import (
    STACK,
    Shape,
    chi_square,
    fingerprint,
    judged,
    model,
    read_transposed,
    relayered,
    tuned,
    weights,
    with_energies,
)
from scipy import stats

from weightprint.compare import compare_pair, prepare, selfcontrol
from weightprint.compare.blocks import encode, largest, order_codes, products, standardised
from weightprint.compare.exact import log10_tail
from weightprint.compare.selfcontrol import SelfControl, self_control, significant, threshold

SIZES = [(2, 1), (2, 48), (3, 8), (4, 16), (6, 8), (6, 96), (12, 8), (12, 48), (24, 16), (40, 8)]


def control(energies: npt.NDArray[np.float32], block: int = 8) -> SelfControl:
    return self_control(energies, encode(energies, block))


def medians(layers: int, blocks: int, checkpoints: int) -> npt.NDArray[np.float64]:
    """Median z of layer pairs, of so many checkpoints whose layers are independent."""
    generator = np.random.default_rng([layers, blocks])
    found = []
    for _ in range(checkpoints // 500):
        codes = order_codes(generator.random((500, layers, 8 * blocks), dtype=np.float32), 8)
        values = codes.reshape(500, layers, -1).astype(np.float32)
        z = (values @ values.transpose(0, 2, 1)) / largest(8) * math.sqrt(7 / blocks)
        found.append(np.median(z[:, *np.triu_indices(layers, 1)], axis=1))
    return np.concatenate(found)


@pytest.mark.parametrize(("layers", "blocks"), SIZES, ids=str)
def test_independent_layers_practically_never_fail(layers: int, blocks: int) -> None:
    """4,000 checkpoints each: the bound says 0.02 of them; a looser level of the same bound is held as well."""
    found = medians(layers, blocks, 4000)
    assert np.abs(found).max() > 0
    assert found.max() <= threshold(layers, 7 * blocks)


@pytest.mark.parametrize("level", [0.05, 0.01])
@pytest.mark.parametrize(("layers", "blocks"), SIZES, ids=str)
def test_bound_holds_at_levels_that_simulation_can_see(
    layers: int, blocks: int, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcontrol, "_EXPONENT", -math.log(level))
    found = medians(layers, blocks, 4000)
    above = int((found > threshold(layers, 7 * blocks)).sum())
    assert stats.binom.sf(above - 1, len(found), level) > 1e-4


def test_level_is_five_in_a_million() -> None:
    assert math.exp(-selfcontrol._EXPONENT) == pytest.approx(5e-6, rel=0.02)


def test_threshold_falls_with_layers_and_blocks() -> None:
    assert threshold(6, 100) > threshold(12, 100) > threshold(24, 100)
    assert threshold(6, 56) > threshold(6, 560)


def test_figures_of_independent_layers() -> None:
    energies = chi_square(5, 8, 128)
    found = control(energies)
    codes = [2 * stats.rankdata(row.reshape(-1, 8), axis=1) - 9 for row in energies]
    z = [(codes[i] * codes[j]).sum() / 168 * math.sqrt(7 / 16) for i in range(8) for j in range(i)]
    assert found.median == pytest.approx(np.median(z))
    assert (found.pairs, found.failed, found.copies) == (28, False, ())
    assert found.cluster == tuple(range(8))


@pytest.mark.parametrize("layers", [6, 12, 24])
def test_matrix_read_transposed_fails_and_is_refused(layers: int) -> None:
    shape = Shape(layers, 64, 64)
    own = weights(1, shape)
    wrong = fingerprint("wrong", own, energies=read_transposed(own, 9))
    (v,) = [group for group in prepare(wrong).groups if group.channel == "v"]
    assert v.control.failed
    assert v.control.median > 2
    found = compare_pair(wrong, model("right", 2, shape))
    assert {test.name for test in found.tests} == {"o whole", "o layers", "o heads"}
    (reason,) = [reason for reason in found.reasons if "is not used" in reason]
    assert "channel v of model.layers in wrong is not used: its own layers agree in order" in reason
    assert f"median z {v.control.median:.1f} over {layers * (layers - 1) // 2} pairs" in reason


@pytest.mark.parametrize("wrong_side", ["a", "b", "both"])
def test_nothing_is_tested_where_the_only_channel_fails(wrong_side: str) -> None:
    """Even a model against itself: units that cannot be exchanged give no p-value."""
    own = weights(1, Shape(8, 64, 64))
    order = np.stack(list(read_transposed(own, 9).values()))
    wrong = with_energies("wrong", order)
    right = with_energies("right", chi_square(1, 8, 64), seed=2)
    pair = {"a": (wrong, right), "b": (right, wrong), "both": (wrong, replace(wrong, name="again"))}[wrong_side]
    found = compare_pair(*pair)
    assert (found.tests, found.pair_log10_p, found.layer_map) == ((), None, ())
    if wrong_side != "both":
        assert judged(*pair).verdict == "not-comparable"


def test_rotary_like_order_fails() -> None:
    """Energies that rise with the position in a block, as frequencies of rotary embedding make them."""
    rising = np.tile(np.linspace(1, 1.6, 8), 8)
    energies = (chi_square(3, 12, 64) / 64 * rising).astype(np.float32)
    assert control(energies).failed


def test_bit_identical_layers_count_once() -> None:
    energies = chi_square(6, 8, 128)
    doubled = energies[[0, 1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5]]
    found, once = control(doubled), control(energies)
    assert found.copies == ((2, 8), (3, 9), (4, 10), (5, 11))
    assert found.cluster == (0, 1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5)
    assert (found.median, found.pairs, found.threshold) == (once.median, once.pairs, once.threshold)


def test_copies_that_were_trained_on_are_found() -> None:
    base = weights(1, Shape(8, 128, 48))
    later = fingerprint("later", tuned(relayered(base, [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]), 2))
    for group in prepare(later).groups:
        assert group.control.copies == ((3, 6), (4, 7), (5, 8)), group.channel
        assert not group.control.failed


def test_copies_of_copies_are_one_cluster() -> None:
    """0 is like 2, 2 like 4; 0 and 4 need not reach the level themselves."""
    blend = chi_square(7, 6, 400, freedom=512)
    blend[2] = np.where(np.arange(400) < 200, blend[0], blend[2])
    blend[4] = np.where(np.arange(400) < 200, blend[4], blend[2])
    found = control(blend)
    assert found.copies == ((0, 2, 4),)
    assert found.cluster == (0, 1, 0, 3, 0, 5)


def test_all_layers_shared_leaves_nothing_to_look_at() -> None:
    found = control(np.repeat(chi_square(8, 1, 64), 12, axis=0))
    assert found.copies == (tuple(range(12)),)
    assert (found.pairs, found.failed) == (0, False)
    assert math.isnan(found.median)


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_without_a_common_block_give_no_figure(layers: int) -> None:
    energies = chi_square(9, layers, 16)
    energies[0, 0] = energies[-1, 8] = np.nan
    found = control(energies)
    assert (found.pairs, found.failed) == (0, False)


def test_blocks_too_short_to_code() -> None:
    energies = chi_square(10, 3, 13)[[0, 1, 2, 0]]
    found = self_control(energies, None)
    assert (found.pairs, found.failed, found.copies) == (0, False, ((0, 3),))


@pytest.mark.parametrize("log10_p", [-0.5, -2.0, -9.0])
def test_significant_is_every_exact_p_at_or_below(log10_p: float) -> None:
    energies = chi_square(11, 40, 96)
    energies[3, 5] = energies[9, 90] = energies[9, 4] = np.nan
    energies[20] = energies[0] * np.float32(2)
    codes = encode(energies, 8)
    statistic, counts = products(codes, codes)
    where = np.triu(np.ones((40, 40), bool), 1)
    expected = [
        [bool(where[i, j]) and log10_tail(int(statistic[i, j]), int(counts[i, j]), 8) <= log10_p for j in range(40)]
        for i in range(40)
    ]
    assert significant(statistic, counts, where, 8, log10_p).tolist() == expected
    assert np.sum(expected) > 0


def test_copies_are_named_in_the_reasons_by_layer_numbers() -> None:
    base = weights(1, Shape(6, 128))
    shifted = {(STACK, layer + 3, role): value for (_, layer, role), value in relayered(base, [0, 1, 2, 3, 1]).items()}
    found = compare_pair(fingerprint("up", shifted), model("other", 2, Shape(5, 128)))
    assert "layers 4, 7 of model.layers in up are copies of each other (channel v and o)" in found.reasons


def test_standard_normal_between_layers_of_independent_models() -> None:
    """The premise: z of layer pairs has mean 0 and variance 1, whatever the number of blocks."""
    codes = encode(chi_square(12, 120, 256), 8)
    statistic, counts = products(codes, codes)
    z = standardised(statistic, counts, 8)[np.triu_indices(120, 1)]
    assert z.mean() == pytest.approx(0, abs=4 / math.sqrt(len(z)))
    assert z.var() == pytest.approx(1, abs=4 * math.sqrt(2 / len(z)))
