"""Products of packed codes and their reduction in one pass, compiled by numba for the processor at hand.

Four layers of one side meet four of the other in registers; T of one pair of fingerprints never leaves the cache. It
runs on the thread that calls it, so that threads over tiles do not wait for those of a BLAS: on a busy machine these
cost a thousand times the product. Sums are of integers below 2^24 in float32, exact in any order, which is why the
compiler may reorder them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import INT64
from weightprint.compare.packed import INT8
from weightprint.compare.products import Chosen, Sums, numpy_product
from weightprint_kernels.compiled import compiled

_ANY_ORDER = {"reassoc", "contract", "nsz"}
_SIDE = 4  # layers of either side in registers: 16 sums and 5 operands

Array = npt.NDArray[Any]


def fused_product(a: INT8, b: INT8, chosen: Chosen, wide: bool) -> Sums:
    """A :data:`weightprint.compare.products.Product`."""
    if wide:
        return numpy_product(a, b, chosen, wide)
    sums = np.empty((4, len(a), len(b)), np.int64)
    pairs = np.array(chosen, np.int64).reshape(2, -1)
    _reduce(np.ascontiguousarray(a), np.ascontiguousarray(b), pairs, sums)
    return Sums(*sums)


@compiled()
def _reduce(a: INT8, b: INT8, chosen: INT64, sums: INT64) -> None:
    layers_a, layers_b, units = a.shape[1], b.shape[1], a.shape[2]
    # Rows of zeros make either side a multiple of _SIDE; nobody looks at their products.
    first = np.zeros((len(a), -(-layers_a // _SIDE) * _SIDE, units), np.float32)
    second = np.zeros((-(-layers_b // _SIDE) * _SIDE, units), np.float32)
    inner = np.empty((first.shape[1], second.shape[0]), np.float32)
    of_column = np.empty(layers_b, np.float32)
    for row in range(len(a)):
        for layer in range(layers_a):
            for unit in range(units):
                first[row, layer, unit] = a[row, layer, unit]
    for column in range(len(b)):
        for layer in range(layers_b):
            for unit in range(units):
                second[layer, unit] = b[column, layer, unit]
        for row in range(len(a)):
            for i in range(0, first.shape[1], _SIDE):
                for j in range(0, second.shape[0], _SIDE):
                    _sixteen(first[row, i : i + _SIDE], second[j : j + _SIDE], inner[i : i + _SIDE, j : j + _SIDE])
            total = np.int64(0)
            for number in range(chosen.shape[1]):
                total += np.int64(inner[chosen[0, number], chosen[1, number]])
            sums[0, row, column] = total
            sums[1:, row, column] = _largest(inner[:layers_a, :layers_b], of_column)


@compiled()
def _largest(inner: Array, of_column: Array) -> tuple[np.int64, np.int64, np.int64]:
    """The largest entry, and the sums of the largest of each row and of each column, for which there is space."""
    largest = inner[0, 0]
    of_a = np.int64(0)
    of_column[:] = inner[0]
    for i in range(inner.shape[0]):
        own = inner[i, 0]
        for j in range(inner.shape[1]):
            own = max(own, inner[i, j])
            of_column[j] = max(of_column[j], inner[i, j])
        of_a += np.int64(own)
        largest = max(largest, own)
    of_b = np.int64(0)
    for j in range(inner.shape[1]):
        of_b += np.int64(of_column[j])
    return np.int64(largest), of_a, of_b


@compiled(fastmath=_ANY_ORDER)
def _sixteen(a: Array, b: Array, inner: Array) -> None:
    """Products of four rows [4, units] with four; written out, so that every sum has a register."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for unit in range(a.shape[1]):
        b0, b1, b2, b3 = b[0, unit], b[1, unit], b[2, unit], b[3, unit]
        own = a[0, unit]
        s00 += own * b0
        s01 += own * b1
        s02 += own * b2
        s03 += own * b3
        own = a[1, unit]
        s10 += own * b0
        s11 += own * b1
        s12 += own * b2
        s13 += own * b3
        own = a[2, unit]
        s20 += own * b0
        s21 += own * b1
        s22 += own * b2
        s23 += own * b3
        own = a[3, unit]
        s30 += own * b0
        s31 += own * b1
        s32 += own * b2
        s33 += own * b3
    inner[0, 0], inner[0, 1], inner[0, 2], inner[0, 3] = s00, s01, s02, s03
    inner[1, 0], inner[1, 1], inner[1, 2], inner[1, 3] = s10, s11, s12, s13
    inner[2, 0], inner[2, 1], inner[2, 2], inner[2, 3] = s20, s21, s22, s23
    inner[3, 0], inner[3, 1], inner[3, 2], inner[3, 3] = s30, s31, s32, s33
