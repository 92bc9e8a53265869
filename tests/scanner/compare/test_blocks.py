"""Order codes: ranks inside blocks and nothing else; ties and gaps drop the block on both sides."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from compare.build import LAW, chi_square
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weightprint.compare.blocks import block_length, encode, largest, order_codes, products, standardised

FLOAT32 = npt.NDArray[np.float32]
SPECIAL = [0.0, -0.0, 1.0, 2.0, 3.5, math.inf, -math.inf, math.nan]


@st.composite
def energies(draw: st.DrawFn) -> tuple[FLOAT32, int]:
    """Energies [layers, units] with ties, infinities and nan, and a block length."""
    block = draw(st.integers(2, 8))
    shape = (draw(st.integers(1, 3)), block * draw(st.integers(1, 4)))
    values = st.one_of(st.floats(0, 2.0**100, width=32), st.floats(0, 8, width=32), st.sampled_from(SPECIAL))
    return draw(hnp.arrays(np.float32, shape, elements=values)), block


def is_valid(block: FLOAT32) -> bool:
    return bool(np.isfinite(block).all()) and len(set(block.tolist())) == len(block)


@given(energies())
@LAW
def test_codes_are_centred_ranks_or_zero(case: tuple[FLOAT32, int]) -> None:
    values, block = case
    codes = order_codes(values, block)
    assert codes.dtype == np.int8
    for own, code in zip(values.reshape(-1, block), codes.reshape(-1, block), strict=True):
        expected = 2 * scipy.stats.rankdata(own) - (block + 1) if is_valid(own) else np.zeros(block)
        assert code.tolist() == expected.tolist()


@given(energies())
@LAW
def test_encode_says_which_blocks_count(case: tuple[FLOAT32, int]) -> None:
    values, block = case
    codes = encode(values, block)
    expected = [[is_valid(own) for own in row.reshape(-1, block)] for row in values]
    assert codes.valid.tolist() == expected
    assert codes.all_valid == all(map(all, expected))
    assert codes.values.shape == values.shape


@pytest.mark.parametrize("block", range(2, 9))
def test_codes_of_a_block(block: int) -> None:
    rising = order_codes(np.arange(block, dtype=np.float32), block)[0]
    assert rising.tolist() == list(range(1 - block, block, 2))
    assert rising.sum() == 0
    assert largest(block) == int(rising.astype(int) @ rising)


@given(
    st.lists(st.integers(1, 2**20), min_size=16, max_size=16, unique=True),
    st.floats(2.0**-40, 2.0**40, width=32),
)
@LAW
def test_blind_to_scale(values: list[int], scale: float) -> None:
    one = np.array(values, np.float32)
    scaled = (one.astype(np.float64) * scale).astype(np.float32)
    assert (order_codes(np.sqrt(one.astype(np.float64)), 8) == order_codes(one, 8)).all()
    assert (order_codes(np.float32(2.0) ** 20 * one, 8) == order_codes(one, 8)).all()
    assert len(set(scaled.tolist())) < 16 or (order_codes(scaled, 8) == order_codes(one, 8)).all()


@pytest.mark.parametrize(
    "spoil",
    [lambda row: row[4], lambda row: math.nan, lambda row: math.inf, lambda row: -math.inf],
    ids=["tie", "nan", "inf", "minus inf"],
)
@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_spoilt_block_is_dropped_on_both_sides(spoil: object, side: str) -> None:
    """The statistic is that of the other blocks alone, whatever stands in the spoilt one."""
    assert callable(spoil)
    a, b = chi_square(1, 1, 40), chi_square(2, 1, 40)
    rest = np.r_[0:8, 16:40]
    expected = products(encode(a[:, rest], 8), encode(b[:, rest], 8))
    for values in {"a": [a], "b": [b], "both": [a, b]}[side]:
        values[0, 13] = spoil(values[0, 8:16])
    statistic, counts = products(encode(a, 8), encode(b, 8))
    assert counts.tolist() == [[4]] == expected[1].tolist()
    assert statistic.tolist() == expected[0].tolist()


@pytest.mark.parametrize(
    ("units", "widths", "length"),
    [
        (4096, (128, 128), 8),
        (768, (64, None), 8),
        (320, (20,), 5),
        (36, (12, 12), 6),
        (96, (12, 16), 4),
        (96, (16, 12), 4),
        (60, (4, None), 4),
        (70, (14,), 7),
        (64, (2, 64), 2),
        (64, (1, 64), 1),
        (91, (13,), 1),
        (100, (50, None), 5),
        (24, (16,), 8),
    ],
    ids=str,
)  # fmt: skip
def test_block_length(units: int, widths: tuple[int | None, ...], length: int) -> None:
    assert block_length(units, *widths) == length


@given(st.integers(1, 5000), st.lists(st.one_of(st.none(), st.integers(1, 300)), max_size=3).filter(any))
@LAW
def test_block_divides_units_and_every_known_head_width(units: int, widths: list[int | None]) -> None:
    whole = [units, *(width for width in widths if width)]
    fitting = [length for length in range(1, 9) if all(number % length == 0 for number in whole)]
    assert block_length(units, *widths) == max(fitting)


@given(energies(), st.integers(0, 99))
@LAW
def test_products_of_every_layer_with_every_layer(case: tuple[FLOAT32, int], seed: int) -> None:
    values, block = case
    other = np.random.default_rng(seed).permuted(values[::-1], axis=1)
    statistic, counts = products(encode(values, block), encode(other, block))
    for i, j in itertools.product(range(len(values)), repeat=2):
        both = [
            (x, y)
            for x, y in zip(values[i].reshape(-1, block), other[j].reshape(-1, block), strict=True)
            if is_valid(x) and is_valid(y)
        ]
        ranks = [(scipy.stats.rankdata(x), scipy.stats.rankdata(y)) for x, y in both]
        expected = sum(int((2 * x - block - 1) @ (2 * y - block - 1)) for x, y in ranks)
        assert (statistic[i, j], counts[i, j]) == (expected, len(both))


def test_products_of_more_blocks_than_float32_can_sum() -> None:
    a, b = chi_square(3, 2, 8 * 110_000), chi_square(4, 2, 8 * 110_000)
    b[1] = a[1]
    statistic, counts = products(encode(a, 8), encode(b, 8))
    assert counts.min() > 109_990, "float32 energies seldom tie"
    whole = [order_codes(values, 8).reshape(2, -1).astype(np.int64) for values in (a, b)]
    assert (statistic == whole[0] @ whole[1].T).all()
    assert statistic[1, 1] == 168 * counts[1, 1] > 2**24


@pytest.mark.parametrize("block", range(2, 9))
def test_standardised_has_variance_one(block: int) -> None:
    """Over all permutations, for one block; and for m blocks by the scaling with the square root of m."""
    orders = np.array(list(itertools.permutations(range(block))), np.float32)
    codes = order_codes(orders, block)[:, 0].astype(np.int64)
    z = standardised(codes @ codes[0], np.ones(len(codes)), block)
    assert z.mean() == pytest.approx(0, abs=1e-12)
    assert (z**2).mean() == pytest.approx(1, rel=1e-12)
    assert standardised(300, 9, block) == pytest.approx(standardised(100, 1, block), rel=1e-12)


def test_standardised_without_a_block_is_zero() -> None:
    assert standardised([0, 24], [0, 1], 8).tolist() == [0.0, pytest.approx(24 / 168 * math.sqrt(7))]


def test_products_in_pieces() -> None:
    """More units than BLAS multiplies on one thread."""
    a, b = (np.random.default_rng(seed).random((40, 2056), np.float32) for seed in (1, 2))
    statistic, _ = products(encode(a, 8), encode(b, 8))
    assert np.array_equal(statistic, encode(a, 8).values.astype(np.int64) @ encode(b, 8).values.astype(np.int64).T)
