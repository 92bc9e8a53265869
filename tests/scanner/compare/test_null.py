"""Under the null hypothesis p-values are uniform, or larger: independent units, ties, copies, whole models, reports."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import STACK, Shape, fingerprint, model, relayered, weights
from scipy import stats

from weightprint.compare import compare_pair, judge, prepare
from weightprint.compare.blocks import encode, largest, order_codes, products
from weightprint.compare.exact import STEP, log10_tail
from weightprint.data import Comparison, Fingerprint

LEVELS = (0.05, 0.01, 0.001)
FLOAT64 = npt.NDArray[np.float64]


def assert_not_too_small(p_values: FLOAT64, levels: Sequence[float] = LEVELS) -> None:
    """P(p <= a) <= a: more small p-values than chance gives with probability 1e-4 turn it red."""
    for level in levels:
        small = int((p_values <= level).sum())
        chance = stats.binom.sf(small - 1, len(p_values), level)
        assert chance > 1e-4, f"{small} of {len(p_values)} p-values are at or below {level}: chance {chance:.1e}"


def assert_uniform(p_values: FLOAT64, largest_atom: float = 0.0) -> None:
    """Kolmogorov-Smirnov, less what a discrete statistic may lack: its most probable value."""
    distance = stats.kstest(p_values, "uniform").statistic - largest_atom
    assert stats.kstwo.sf(max(distance, 0.0), len(p_values)) > 1e-3
    assert_not_too_small(p_values)


def pair_p_values(found: Sequence[Comparison]) -> FLOAT64:
    """p of every tested pair, corrected inside the pair."""
    return np.array([10.0**own.pair_log10_p for own in found if own.pair_log10_p is not None])


def draw(law: str, generator: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    drawn = {
        "chi-square": lambda: generator.chisquare(64, size),
        "heavy-tailed": lambda: generator.pareto(1.1, size),
        "scales of heads": lambda: (
            generator.chisquare(64, size)
            * np.repeat(generator.lognormal(sigma=2, size=(*size[:-1], size[-1] // 64)), 64, axis=-1)
        ),
        "correlated units": lambda: generator.chisquare(64, size) + 50 * generator.random((*size[:-1], 1)),
    }[law]()
    return np.asarray(drawn, np.float32)


@pytest.mark.parametrize("law", ["chi-square", "heavy-tailed", "scales of heads", "correlated units"])
def test_two_thousand_pairs_of_independent_energies(law: str) -> None:
    generator = np.random.default_rng(1)
    blocks, p_values = 384, []
    for _ in range(40):
        energies = draw(law, generator, (50, 2, 8 * blocks))
        for pair in energies:
            codes = encode(pair, 8)
            statistic, counts = products(codes, codes)
            p_values.append(10 ** log10_tail(int(statistic[0, 1]), int(counts[0, 1]), 8))
            assert counts[0, 1] >= blocks - 8, "few of these energies tie"
    deviation = largest(8) / STEP * math.sqrt(blocks / 7)
    assert_uniform(np.array(p_values), largest_atom=stats.norm.pdf(0) / deviation)


def test_scrambled_codes_alone() -> None:
    """Codes without energies: uniform permutations on one side, a fixed order on the other."""
    generator = np.random.default_rng(2)
    identity = order_codes(np.arange(8, dtype=np.float32), 8)[0].astype(np.int64)
    codes = generator.permuted(np.broadcast_to(identity, (2000, 256, 8)), axis=2)
    p_values = [10 ** log10_tail(int(statistic), 256, 8) for statistic in (codes * identity).sum(axis=(1, 2))]
    assert_uniform(np.array(p_values), largest_atom=stats.norm.pdf(0) / (42 * math.sqrt(256 / 7)))


def test_energies_with_many_ties() -> None:
    """Coarse energies: a block in two drops out, another number of them for every pair."""
    generator = np.random.default_rng(3)
    energies = np.round(generator.chisquare(64, size=(64, 8 * 300)) * 4).astype(np.float32)
    codes = encode(energies, 8)
    assert 0.3 < codes.valid.mean() < 0.95
    statistic, counts = products(codes, codes)
    upper = np.triu_indices(64, 1)
    assert len(set(counts[upper].tolist())) > 10
    p_values = [10 ** log10_tail(int(t), int(m), 8) for t, m in zip(statistic[upper], counts[upper], strict=True)]
    assert_uniform(np.array(p_values), largest_atom=0.002)


@pytest.mark.parametrize("block", [2, 3, 5])
def test_short_blocks(block: int) -> None:
    generator = np.random.default_rng([4, block])
    codes = encode(generator.random((64, 600 * block), dtype=np.float32), block)
    statistic, counts = products(codes, codes)
    upper = np.triu_indices(64, 1)
    p_values = [10 ** log10_tail(int(t), int(m), block) for t, m in zip(statistic[upper], counts[upper], strict=True)]
    assert_uniform(np.array(p_values), largest_atom=0.04)


@pytest.fixture(scope="module")
def independent() -> list[Comparison]:
    """Every pair of 48 independent models of four layers."""
    models = [prepare(model(f"m{seed}", seed, Shape(4, 64, 24))) for seed in range(48)]
    return [compare_pair(a, b) for a, b in itertools.combinations(models, 2)]


def test_whole_pipeline_on_independent_models(independent: list[Comparison]) -> None:
    """1,128 pairs; two channels and two resolutions are paid for, so p is uniform at best."""
    p_values = pair_p_values(independent)
    assert len(p_values) == 1128
    assert_not_too_small(p_values, (0.2, *LEVELS))
    assert (p_values <= 0.05).mean() > 0.01, "corrected, but not blind"


def test_each_test_of_independent_models(independent: list[Comparison]) -> None:
    """Before the correction for several tests: whole v and whole o are uniform; the smallest of 16 layer pairs is not
    too small once it has paid for 16."""
    for name in ("v whole", "o whole", "v layers", "o layers"):
        found = [test for comparison in independent for test in comparison.tests if test.name == name]
        assert len(found) == len(independent)
        if "whole" in name:
            assert_uniform(np.array([10**test.log10_p for test in found]), largest_atom=0.003)
        else:
            assert_not_too_small(np.array([16 * 10**test.log10_p for test in found]))


def test_report_of_independent_models_rejects_nothing(independent: list[Comparison]) -> None:
    found = judge(independent, alpha=0.01)
    assert {comparison.verdict for comparison in found} <= {"no-evidence", "similar-profile"}


def test_copied_layers_on_both_sides() -> None:
    """Both sides doubled their layers the same way. Counted twice, the variance of T would be twice what it seems."""
    base = [weights(seed, Shape(3, 64, 16)) for seed in range(100, 128)]
    doubled = [prepare(fingerprint(f"m{n}", relayered(own, [0, 1, 2, 0, 1, 2]))) for n, own in enumerate(base)]
    found = [compare_pair(a, b) for a, b in itertools.combinations(doubled, 2)]
    whole = [test for comparison in found for test in comparison.tests if test.name == "v whole"]
    assert {test.blocks for test in whole} == {24}
    assert_uniform(np.array([10**test.log10_p for test in whole]), largest_atom=0.006)
    assert_not_too_small(pair_p_values(found))


def test_copied_layers_on_one_side() -> None:
    copied = [prepare(fingerprint(f"a{n}", relayered(weights(n, Shape(2, 64, 16)), [0, 1, 0, 1]))) for n in range(26)]
    plain = [prepare(model(f"b{n}", 900 + n, Shape(4, 64, 16))) for n in range(26)]
    whole = [test for a in copied for b in plain for test in compare_pair(a, b).tests if test.name == "v whole"]
    assert {test.blocks for test in whole} == {32}
    assert_uniform(np.array([10**test.log10_p for test in whole]), largest_atom=0.006)


def clumped(name: str, seed: int, width: int, head_width: int | None) -> Fingerprint:
    """Heads of different strength, as trained heads are: a unit's energy depends on its head."""
    generator = np.random.default_rng([seed, width])
    shape = Shape(6, 240, 8)
    energies = {
        (STACK, layer, channel): (
            np.repeat(generator.lognormal(sigma=0.3, size=shape.units // width), width)
            * generator.chisquare(256, size=shape.units)
        ).astype(np.float32)
        for layer in range(shape.layers)
        for channel in "vo"
    }
    return fingerprint(name, weights(seed, shape), head_width, energies=energies)


@pytest.mark.parametrize("known", ["both sides", "one side", "neither side"])
@pytest.mark.parametrize("width", [4, 12, 20], ids="heads of {}".format)
def test_heads_of_different_strength(width: int, known: str) -> None:
    """Blocks inside heads are exchangeable whatever their heads' strength, and it is enough that those of one side are.
    Where no config says how wide a head is, a block must not reach across heads, or the common strength of neighbours
    inflates the variance of T."""
    widths = {"both sides": (width, width), "one side": (width, None), "neither side": (None, None)}[known]
    a, b = (
        [prepare(clumped(f"m{seed}", seed, width, own)) for seed in range(first, first + 17)]
        for first, own in zip((0, 100), widths, strict=True)
    )
    found = [compare_pair(one, other) for one in a for other in b]
    p_values = pair_p_values(found)
    # To make no test is a fair answer to unknown heads.
    assert len(p_values) == len(found) or known == "neither side"
    assert_not_too_small(p_values)
