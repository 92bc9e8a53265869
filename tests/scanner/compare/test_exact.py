"""The exact tail against enumeration, big integers and Monte Carlo: right to twelve digits and never too small."""

import itertools
import math
import time
from collections.abc import Iterator
from decimal import Decimal, getcontext
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import LAW
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare import exact
from weightprint.compare.blocks import largest, order_codes
from weightprint.compare.exact import STEP, block_counts, critical, log10_tail, log10_tail_bounds, log10_tails

TOO_LARGE_BY = 5e-11
"""In log10 p, up to a hundred blocks."""
BIG = npt.NDArray[np.object_]
getcontext().prec = 40


@cache
def permuted_codes(block: int) -> npt.NDArray[np.int64]:
    """Codes of energies in every order, [b!, b]."""
    energies = np.array(list(itertools.permutations(range(block))), np.float32)
    return order_codes(energies, block)[:, 0].astype(np.int64)


def laws(block: int, blocks: int) -> Iterator[tuple[int, BIG]]:
    """How many arrangements of 1, 2, ... blocks lie 0, 1, ... steps below the largest statistic, in Python integers."""
    one = np.array([int(count) for count in block_counts(block)], object)
    law = one
    for number in range(1, blocks + 1):
        yield number, law
        law = np.convolve(law, one)


def assert_bounds_from_above(
    law: BIG, blocks: int, block: int, steps: Iterator[int], too_large_by: float = TOO_LARGE_BY
) -> None:
    tail = np.cumsum(law)
    total = Decimal(int(tail[-1])).log10()
    for below in steps:
        exactly = Decimal(int(tail[below])).log10() - total
        excess = Decimal(log10_tail(largest(block) * blocks - STEP * below, blocks, block)) - exactly
        assert 0 <= excess < too_large_by, f"{blocks} blocks, {below} steps: {excess}"


def some_steps(law: BIG) -> Iterator[int]:
    return iter(sorted({*range(min(4, len(law))), *np.linspace(0, len(law) - 1, 24).astype(int).tolist()}))


def own_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_near", lambda *_: None)


@pytest.mark.parametrize("block", range(2, 9))
def test_block_counts_by_enumeration(block: int) -> None:
    codes = permuted_codes(block)
    (identity,) = codes[(np.diff(codes) > 0).all(axis=1)]
    statistics, numbers = np.unique(codes @ identity, return_counts=True)
    expected = dict(zip((largest(block) - statistics) // STEP, numbers, strict=True))
    counts = block_counts(block)
    assert counts.sum() == math.factorial(block)
    assert {step: count for step, count in enumerate(counts) if count} == expected


def test_one_block_by_all_pairs_of_permutations() -> None:
    codes = permuted_codes(4)
    statistics = (codes @ codes.T).ravel()
    for statistic in range(-largest(4), largest(4) + 1):
        assert 10 ** log10_tail(statistic, 1, 4) == pytest.approx(np.mean(statistics >= statistic), rel=1e-12)


def test_two_blocks_by_all_pairs_of_permutations() -> None:
    codes = permuted_codes(4)
    one = (codes @ codes.T).ravel()
    statistics = (one[:, None] + one).ravel()
    assert len(statistics) == math.factorial(4) ** 4
    for statistic in range(-2 * largest(4), 2 * largest(4) + 1):
        assert 10 ** log10_tail(statistic, 2, 4) == pytest.approx(np.mean(statistics >= statistic), rel=1e-12)


@pytest.mark.parametrize(("block", "blocks"), [(2, 9), (3, 6), (4, 5), (8, 2), (8, 3)])
def test_every_statistic_against_big_integers(block: int, blocks: int) -> None:
    law = dict(laws(block, blocks))[blocks]
    assert_bounds_from_above(law, blocks, block, iter(range(len(law))))


@pytest.mark.parametrize(
    ("block", "blocks"), [(2, 100), (3, 60), (4, 100), (5, 60), (6, 40), (7, 40), (8, 40)], ids=str
)
def test_up_to_many_blocks_against_big_integers(block: int, blocks: int) -> None:
    for number, law in laws(block, blocks):
        assert_bounds_from_above(law, number, block, some_steps(law))


def test_shared_and_own_tilt_against_big_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 blocks of 8, every z from -1 to 8: the tables that a scan shares and the tilt of a single statistic."""
    law = dict(laws(8, 32))[32]
    law = np.convolve(law, law)
    deviation = largest(8) / STEP * math.sqrt(64 / 7)
    steps = sorted({round(largest(8) * 64 / STEP - z * deviation) for z in np.linspace(-1, 8, 91)})
    assert {exact._near(step, 64, 8) for step in steps} == {None, *range(7)}
    assert_bounds_from_above(law, 64, 8, iter(steps))
    own_tilt(monkeypatch)
    assert_bounds_from_above(law, 64, 8, iter(steps))


@pytest.mark.parametrize(("block", "blocks"), [(2, 1000), (3, 500), (4, 300)], ids=str)
def test_where_the_law_is_cut_off(block: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transform is shorter than the law: what wraps around and what is left out below are bounds, too."""
    law = np.array([1], object)
    for _, law in laws(block, blocks):  # noqa: B007  the last one counts
        pass
    assert exact._convolution(block, blocks, 1.0).first > 0
    deviation = largest(block) / STEP * math.sqrt(blocks / (block - 1))
    middle = (len(law) - 1) / 2
    steps = sorted({min(len(law) - 1, max(0, round(middle - z * deviation))) for z in np.linspace(-12, 30, 85)})
    assert_bounds_from_above(law, blocks, block, iter(steps), 4 * TOO_LARGE_BY)
    own_tilt(monkeypatch)
    assert_bounds_from_above(law, blocks, block, iter(steps), 4 * TOO_LARGE_BY)


@pytest.mark.parametrize(("blocks", "block"), [(64, 8), (100, 5), (576, 8), (4096, 8), (57344, 8)], ids=str)
def test_shared_tilt_agrees_with_own_tilt(blocks: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = largest(block) * math.sqrt(blocks / (block - 1))
    statistics = [largest(block) * blocks - STEP * round((largest(block) * blocks - z * scale) / STEP)
                  for z in np.linspace(-3, 7, 41)]  # fmt: skip
    shared = [log10_tail(statistic, blocks, block) for statistic in statistics]
    own_tilt(monkeypatch)
    own = [log10_tail(statistic, blocks, block) for statistic in statistics]
    assert shared == pytest.approx(own, rel=1e-9, abs=1e-7)


def test_monte_carlo() -> None:
    generator = np.random.default_rng(20250704)
    draws, blocks = 240_000, 24
    statistic = np.zeros(draws, np.int64)
    identity = order_codes(np.arange(8, dtype=np.float32), 8)[0].astype(np.int8)
    for _ in range(blocks):
        codes = generator.permuted(np.broadcast_to(identity, (draws, 8)), axis=1)
        statistic += (codes * identity).sum(axis=1, dtype=np.int64)
    for threshold in range(-800, 1400, 40):
        p = 10 ** log10_tail(threshold, blocks, 8)
        error = math.sqrt(max(p * (1 - p), 1 / draws) / draws)
        assert np.mean(statistic >= threshold) == pytest.approx(p, abs=4.5 * error), threshold


def test_anchor_where_the_normal_tail_is_wrong() -> None:
    """m = 24, z = 10: log10 p is -30.6; the normal distribution says -23.1."""
    statistic = round(10 * largest(8) * math.sqrt(24 / 7) / STEP) * STEP
    assert log10_tail(statistic, 24, 8) == pytest.approx(-30.6, abs=0.05)


@pytest.mark.parametrize(("blocks", "block"), [(1, 8), (7, 8), (64, 8), (500, 8), (300, 4), (90, 3)])
def test_falls_with_the_statistic(blocks: int, block: int) -> None:
    top = largest(block) * blocks
    stride = STEP * max(1, top // (STEP * 400))
    values = [log10_tail(statistic, blocks, block) for statistic in range(top, -top - 1, -stride)]
    assert np.diff(values).min() >= -1e-11
    assert values[0] == pytest.approx(-blocks * math.log10(math.factorial(block)), rel=1e-12)
    assert values[-1] == 0.0


@given(
    block=st.integers(2, 8),
    blocks=st.integers(1, 3000),
    share=st.floats(-1, 1),
)
@LAW
def test_is_a_probability_not_below_the_largest_statistics(block: int, blocks: int, share: float) -> None:
    steps = round((1 - share) * largest(block) * blocks / STEP)
    value = log10_tail(largest(block) * blocks - STEP * steps, blocks, block)
    assert -blocks * math.log10(math.factorial(block)) <= value <= 0.0


@pytest.mark.parametrize("z", [-100, -5, 0, 1, 3, 5.9, 6.1, 10, 40, 120, 400])
def test_finite_at_the_size_of_a_large_model(z: float) -> None:
    blocks = 57_344
    value = log10_tail(round(z * largest(8) * math.sqrt(blocks / 7) / STEP) * STEP, blocks, 8)
    # Between Chernoff-like bounds of the normal and of nothing: the law is lighter than the normal nowhere by much.
    normal = -(z**2) / (2 * math.log(10)) if z > 0 else 0.0
    assert math.isfinite(value)
    assert 2.2 * normal - 2 <= value <= 0.0


def test_quick_at_the_size_of_a_large_model() -> None:
    blocks = 57_344
    started = time.perf_counter()
    for z in range(20, 30):
        log10_tail(STEP * (z * 3801), blocks, 8)
    assert time.perf_counter() - started < 5, "40 ms each are usual"


@given(log10_p=st.floats(-300, -0.01), block=st.integers(2, 8), blocks=st.integers(1, 600))
@LAW
def test_critical_is_the_inverse(log10_p: float, block: int, blocks: int) -> None:
    top = largest(block) * blocks
    value = critical(log10_p, blocks, block)
    assert (top - value) % STEP == 0
    assert value > top or log10_tail(value, blocks, block) <= log10_p
    assert value == -top or log10_tail(value - STEP, blocks, block) > log10_p


def test_critical_beyond_the_largest_statistic() -> None:
    assert critical(-5.0, 1, 8) == largest(8) + STEP
    assert critical(-math.log10(math.factorial(8)) + 1e-9, 1, 8) == largest(8)


@pytest.mark.parametrize(("statistic", "blocks"), [(172, 1), (0, 0)], ids=["beyond the largest", "no block"])
def test_what_no_caller_may_ask(statistic: int, blocks: int) -> None:
    with pytest.raises(AssertionError):
        log10_tail(statistic, blocks, 8)


@given(st.sampled_from([(2, 40), (8, 3), (8, 64), (8, 500)]), st.integers(0, 2**16))
@LAW
def test_many_at_once_are_the_same_bits(size: tuple[int, int], seed: int) -> None:
    block, blocks = size
    top = largest(block) * blocks
    steps = np.random.default_rng(seed).integers(0, 2 * top // STEP, (3, 20))
    statistics = top - STEP * steps
    statistics[0, :3] = top
    found = log10_tails(statistics, blocks, block)
    assert found.shape == statistics.shape
    assert found.tolist() == [[log10_tail(int(value), blocks, block) for value in row] for row in statistics]


def test_none_at_once() -> None:
    assert log10_tails(np.zeros(0, np.int64), 10, 8).shape == (0,)


@given(st.sampled_from([2, 3, 4, 6, 7, 8]), st.integers(1, 300), st.floats(-0.2, 1.0))
@LAW
def test_chernoffs_bound_is_one_and_not_far_off(block: int, blocks: int, share: float) -> None:
    top = largest(block) * blocks
    statistic = top - 4 * round((1 - share) * top / 4)
    (bound,) = log10_tail_bounds(np.array([statistic]), np.array([blocks]), block).tolist()
    p = log10_tail(statistic, blocks, block)
    assert p - 1e-9 <= bound <= 0
    # It is larger by about the standard deviation of the tilted law times the tilt.
    assert bound <= p + 2.5


def test_no_blocks_bound_nothing() -> None:
    assert log10_tail_bounds(np.array([0, 168]), np.array([0, 1]), 8).tolist() == [0.0, pytest.approx(-4.6, abs=0.01)]
