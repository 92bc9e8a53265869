"""Order codes: what remains of unit energies when only their order inside short blocks is kept.

Units of one attention head are exchangeable under independent initialisation, so the ranks of ``block`` neighbouring
units are a uniform permutation. A rank r in 1..b becomes the odd (b even) or even (b odd) integer 2r - (b+1), so that
codes sum to zero and the inner product of two blocks is an integer. All scales, per layer, head or block, are given
up; so are blocks that hold a tie or a non-finite unit.

Shapes: energies float32 [layers, units] -> values float32 [layers, blocks * block], valid bool [layers, blocks].
Values are small integers in float32, so that products of layers are GEMMs; invalid blocks are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightprint.data import FLOAT32

LONGEST_BLOCK = 8
WIDTH_UNKNOWN = 2
INT64 = npt.NDArray[np.int64]
FLOAT64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]

_EXACT_IN_FLOAT32 = 2**24
_ON_ONE_THREAD = 2**19  # multiplications
_SHORTEST_PIECE = 64


@dataclass(frozen=True)
class Codes:
    """Order codes of the layers of one stack."""

    block: int
    values: FLOAT32
    valid: BOOL
    all_valid: bool


def block_length(units: int, *head_widths: int | None) -> int:
    """Largest divisor <= 8 of every known head width; 2 where none is known.

    A block that reached across heads would not be uniform: a strong head beside a weak one fills the upper ranks. One
    side whose blocks are uniform is enough, so one known width is. Widths that 8 or 4 do not divide exist; without any
    width, blocks of 2 are right for every even one (docs/decisions/0002).
    """
    width = math.gcd(units, *([known for known in head_widths if known] or [WIDTH_UNKNOWN]))
    return max((length for length in range(1, LONGEST_BLOCK + 1) if width % length == 0), default=1)


def order_codes(energies: FLOAT32, block: int) -> npt.NDArray[np.int8]:
    """Codes of ``energies`` [..., units], int8 [..., units / block, block]; zero in a block that is left out."""
    assert energies.shape[-1] % block == 0
    cut = np.ascontiguousarray(energies).reshape(*energies.shape[:-1], -1, block)
    smaller = np.zeros(cut.shape, np.int8)
    for position in range(block):
        smaller += cut[..., position : position + 1] < cut
    # Without ties the counts are 0..b-1; a tie or a nan makes their sum smaller.
    valid = np.isfinite(cut).all(axis=-1) & (smaller.sum(axis=-1) == block * (block - 1) // 2)
    codes = 2 * smaller - np.int8(block - 1)
    codes[~valid] = 0
    return codes


def encode(energies: FLOAT32, block: int) -> Codes:
    """The codes of ``energies`` [layers, units], ready for :func:`products`."""
    codes = order_codes(energies, block)
    valid = (codes != 0).any(axis=-1)
    return Codes(block, codes.reshape(len(energies), -1).astype(np.float32), valid, bool(valid.all()))


def products(a: Codes, b: Codes) -> tuple[INT64, INT64]:
    """T and the number of blocks valid on both sides, of every layer of ``a`` with every layer of ``b``."""
    assert a.block == b.block
    assert a.values.shape[1] == b.values.shape[1]
    blocks = a.valid.shape[1]
    if blocks * (a.block - 1) ** 2 * a.block < _EXACT_IN_FLOAT32:
        inner = _inner(a.values, b.values)
    else:
        inner = _inner(a.values.astype(np.float64), b.values.astype(np.float64))
    if a.all_valid and b.all_valid:
        counts = np.full(inner.shape, blocks, np.int64)
    else:
        counts = (a.valid.astype(np.float64) @ b.valid.T.astype(np.float64)).astype(np.int64)
    return np.rint(inner).astype(np.int64), counts


def _inner(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """a @ b.T in pieces so short that BLAS keeps to one thread: on a busy machine its threads wait for each other for
    a thousand times as long as the product takes. Sums of these integers are exact in any order."""
    step = max(_SHORTEST_PIECE, _ON_ONE_THREAD // (len(a) * len(b)))
    inner: npt.NDArray[Any] = a[:, :step] @ b[:, :step].T
    for start in range(step, a.shape[1], step):
        inner += a[:, start : start + step] @ b[:, start : start + step].T
    return inner


def largest(block: int) -> int:
    """The inner product of a block of codes with itself, the largest that there is: 168 for blocks of 8."""
    return block * (block * block - 1) // 3


def standardised(statistic: npt.ArrayLike, blocks: npt.ArrayLike, block: int) -> FLOAT64:
    """z of T over so many blocks: Spearman's rho of a block has variance 1/(b-1). Zero where there is no block."""
    return np.asarray(np.asarray(statistic, np.float64) / deviation(blocks, block))


def deviation(blocks: npt.ArrayLike, block: int) -> FLOAT64:
    """Standard deviation of T over so many independent blocks."""
    counts = np.asarray(blocks, np.float64)
    return np.asarray(largest(block) * np.sqrt(np.maximum(counts, 1) / (block - 1)))
