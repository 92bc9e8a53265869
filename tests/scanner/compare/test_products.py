"""Products of packed codes are those of the integers, whatever multiplies them and however they are cut into tiles."""

import numpy as np
import pytest
import torch
from compare.build import LAW
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare.blocks import encode
from weightprint.compare.fused import fused_product
from weightprint.compare.packed import INT8
from weightprint.compare.products import (
    TILE_BYTES,
    Chosen,
    Product,
    Sums,
    forgiving,
    is_wide,
    numpy_product,
    product_for,
    recode,
    tile_of,
    torch_product,
)

PRODUCTS: dict[str, Product] = {
    "numpy": product_for("cpu", 1),
    "numba": product_for("cpu", 10_000),
    "torch": torch_product("cpu"),
}


def random_codes(seed: int, *shape: int, block: int = 8) -> INT8:
    """Codes [members, layers, units] of random order."""
    order = np.argsort(np.random.default_rng(seed).random((*shape[:-1], shape[-1] // block, block)), axis=-1)
    return (2 * order - (block - 1)).astype(np.int8).reshape(shape)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("layers", [(3, 3), (2, 5), (1, 1), (8, 4), (9, 7)], ids=str)
def test_sums_of_integers(name: str, wide: bool, layers: tuple[int, int]) -> None:
    a, b = random_codes(1, 4, layers[0], 48), random_codes(2, 3, layers[1], 48)
    chosen = (np.arange(min(layers)), np.arange(min(layers))[::-1].copy())
    sums = PRODUCTS[name](a, b, chosen, wide)
    inner = np.einsum("aiu,bju->aibj", a.astype(np.int64), b.astype(np.int64))
    assert {own.dtype for own in sums} == {np.dtype(np.int64)}
    assert np.array_equal(sums.best, inner.max(axis=(1, 3)))
    assert np.array_equal(sums.whole, sum(inner[:, i, :, j] for i, j in zip(*chosen, strict=True)))
    assert np.array_equal(sums.of_a, inner.max(axis=3).sum(axis=1))
    assert np.array_equal(sums.of_b, inner.max(axis=1).sum(axis=2))


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_chosen_pair_sums_to_nothing(name: str) -> None:
    none = np.zeros(0, np.intp)
    whole, *_ = PRODUCTS[name](random_codes(1, 2, 3, 16), random_codes(2, 2, 4, 16), (none, none), False)
    assert np.array_equal(whole, np.zeros((2, 2)))


@pytest.mark.parametrize("name", PRODUCTS)
def test_exact_where_float32_skips_integers(name: str) -> None:
    """3,360,000 units of a layer against a copy with one pair of neighbours exchanged: T is beyond 2^26 and no multiple
    of 8, as float32 would have it."""
    product = PRODUCTS[name]
    own = random_codes(3, 1, 1, 8 * 420_000)
    other = own.copy()
    first, second = np.flatnonzero(np.isin(own[0, 0, :8], [1, 3]))
    other[0, 0, [first, second]] = own[0, 0, [second, first]]
    assert is_wide(own.shape[-1], 8)
    whole, best, *_ = product(own, other, (np.zeros(1, np.intp), np.zeros(1, np.intp)), True)
    expected = int(own.astype(np.int64).ravel() @ other.astype(np.int64).ravel())
    assert expected > 2**26
    assert expected % 8 == 4
    assert (int(whole[0, 0]), int(best[0, 0])) == (expected, expected)


def test_wide_begins_where_a_sum_can_reach_the_limit() -> None:
    assert not is_wide(2**24 // 49, 8)
    assert is_wide(2**24 // 49 + 1, 8)


@given(st.sampled_from([(8, 4), (8, 2), (6, 3), (6, 2), (4, 2), (8, 8), (7, 7)]), st.integers(0, 2**16))
@LAW
def test_shorter_blocks_follow_from_longer_ones(blocks: tuple[int, int], seed: int) -> None:
    stored, block = blocks
    energies = np.random.default_rng(seed).random((3, stored * 5), np.float32)
    long, short = encode(energies, stored), encode(energies, block)
    assert np.array_equal(recode(long.values.astype(np.int8), stored, block), short.values)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(8, 20_000))
@LAW
def test_tiles_keep_to_their_bytes(layers_a: int, layers_b: int, units: int) -> None:
    rows, columns = tile_of(layers_a, layers_b, units)
    assert rows >= 1 <= columns
    assert columns == 1 or columns * layers_b * units * 4 <= TILE_BYTES
    assert rows == 1 or max(rows * layers_a * units, rows * layers_a * columns * layers_b) * 4 <= TILE_BYTES


def test_numba_for_many_pairs_only() -> None:
    assert product_for("cpu", 10) is numpy_product
    assert product_for("cpu", 10_000) is fused_product
    if not torch.cuda.is_available():
        assert product_for("cuda", 10) is numpy_product


def test_a_device_that_fails_leaves_its_tile_to_the_processor() -> None:
    """It is asked again where only memory was missing, and no more once it failed."""
    calls = []

    def product(a: INT8, b: INT8, chosen: Chosen, wide: bool) -> Sums:
        calls.append(len(a))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory is left")
        if len(calls) == 3:
            raise RuntimeError("the launch failed")
        return torch_product("cpu")(a, b, chosen, wide)

    a, b = random_codes(1, 4, 3, 48), random_codes(2, 3, 2, 48)
    chosen = (np.arange(2), np.arange(2))
    expected = numpy_product(a, b, chosen, False)
    safe = forgiving(product)
    for asked in (1, 2, 3, 3, 3):
        assert all(map(np.array_equal, safe(a, b, chosen, False), expected))
        assert len(calls) == asked
