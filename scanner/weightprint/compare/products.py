"""T of all layers of some fingerprints with all layers of others, reduced at once to what the tests need.

Codes are small integers and T is below 2^24 in float32, else float64 is taken: so a matrix product of floats is exact
whatever order it sums in, on every processor, and the backends agree to the last bit.

A tile is [rows, layers, units] against [columns, layers, units]. Of its rows x columns pairs come back the
:class:`Sums`. Memory is one tile: TILE_BYTES for each side's floats and for the product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import INT64, order_codes
from weightprint.compare.packed import INT8
from weightprint_kernels.select import numba_refusal

TILE_BYTES = 2**23
FEWEST_TO_COMPILE = 4096
"""Pairs; fewer are done before numba is imported."""

_EXACT_IN_FLOAT32 = 2**24

Chosen = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
"""Layer pairs of the whole test: layers of one side, layers of the other."""


class Sums(NamedTuple):
    """int64 [rows, columns] each: ``whole``, the sum of T over the chosen layer pairs; ``best``, the largest T of all
    layer pairs; ``of_a``, the sum over the layers of the row's side of the largest T that each has with any layer of
    the column's; ``of_b``, the same the other way round."""

    whole: INT64
    best: INT64
    of_a: INT64
    of_b: INT64


Product = Callable[[INT8, INT8, "Chosen", bool], Sums]
"""(codes of rows, codes of columns, chosen layer pairs, wide) -> sums of all pairs."""


def tile_of(layers_a: int, layers_b: int, units: int) -> tuple[int, int]:
    """How many rows and columns the largest tile has that keeps to TILE_BYTES."""
    columns = max(1, TILE_BYTES // (4 * layers_b * units))
    rows = max(1, min(TILE_BYTES // (4 * layers_a * units), TILE_BYTES // (4 * layers_a * layers_b * columns)))
    return rows, columns


def is_wide(units: int, block: int) -> bool:
    """Whether T may reach 2^24, beyond which float32 skips integers."""
    return units * (block - 1) ** 2 >= _EXACT_IN_FLOAT32


def recode(codes: INT8, stored: int, block: int) -> INT8:
    """Codes [..., units] in blocks of ``stored`` units as codes in blocks of ``block``, which divides it."""
    if stored == block:
        return codes
    assert stored % block == 0
    return order_codes(codes.astype(np.float32), block).reshape(codes.shape)


def numpy_product(a: INT8, b: INT8, chosen: Chosen, wide: bool) -> Sums:
    """On the processor, by the matrix product of numpy's BLAS, which is faster with the longer side first."""
    if len(a) < len(b):
        turned = numpy_product(b, a, chosen[::-1], wide)
        return Sums(turned.whole.T, turned.best.T, turned.of_b.T, turned.of_a.T)
    kind: type[np.float32] | type[np.float64] = np.float64 if wide else np.float32
    first: npt.NDArray[Any] = a.astype(kind)
    second: npt.NDArray[Any] = b.astype(kind)
    inner = first.reshape(-1, a.shape[-1]) @ second.reshape(-1, b.shape[-1]).T
    inner = inner.reshape(len(a), a.shape[1], len(b), b.shape[1])
    # Over whole rows first: long runs, and a 1/layers of it is left for the second.
    of_layers_of_b = inner.max(axis=1)
    of_layers_of_a = inner.max(axis=3)
    # Indexed on both sides of an axis, the pairs come first.
    sums = inner[:, chosen[0], :, chosen[1]].sum(axis=0, dtype=np.float64)
    return Sums(
        whole=np.rint(sums).astype(np.int64),
        best=np.rint(of_layers_of_b.max(axis=-1)).astype(np.int64),
        of_a=np.rint(of_layers_of_a.sum(axis=1, dtype=np.float64)).astype(np.int64),
        of_b=np.rint(of_layers_of_b.sum(axis=2, dtype=np.float64)).astype(np.int64),
    )


def torch_product(device: str) -> Product:
    """The same on a device of torch, "cpu" or "cuda"; products in float32 are exact with and without TF32, whose
    inputs hold these integers and whose sums are kept in float32."""
    import torch

    def product(a: INT8, b: INT8, chosen: Chosen, wide: bool) -> Sums:
        kind = torch.float64 if wide else torch.float32
        first, second = (torch.from_numpy(np.array(x)).to(device).to(kind) for x in (a, b))
        inner = first.reshape(-1, a.shape[-1]) @ second.reshape(-1, b.shape[-1]).T
        inner = inner.reshape(len(a), a.shape[1], len(b), b.shape[1])
        of_b, of_a = inner.amax(dim=1), inner.amax(dim=3)
        rows, columns = (torch.from_numpy(np.asarray(index, np.int64)).to(device) for index in chosen)
        whole = inner[:, rows, :, columns].sum(dim=0, dtype=torch.float64)
        sums = (whole, of_b.amax(dim=-1), of_a.sum(dim=1, dtype=torch.float64), of_b.sum(dim=2, dtype=torch.float64))
        return Sums(*(np.asarray(own.round().to(torch.int64).cpu().numpy(), np.int64) for own in sums))

    return product


def forgiving(product: Product) -> Product:
    """The product, and the processor's for a tile that the device has no memory for, or from the tile on at which it
    failed."""
    import torch

    failed = threading.Event()

    def safe(a: INT8, b: INT8, chosen: Chosen, wide: bool) -> Sums:
        if not failed.is_set():
            try:
                return product(a, b, chosen, wide)
            except torch.OutOfMemoryError:
                pass
            except RuntimeError:  # what torch raises for every fault of a device
                failed.set()
        return numpy_product(a, b, chosen, wide)

    return safe


def product_for(device: str, pairs: int) -> Product:
    """The product for so many pairs on a device: "cpu", "torch-cpu" or "cuda"; the processor where torch finds no CUDA
    device, and where that fails. The integers are the same."""
    if device != "cpu":
        import torch

        if device != "cuda" or torch.cuda.is_available():
            return forgiving(torch_product(device.removeprefix("torch-")))
    if pairs < FEWEST_TO_COMPILE or numba_refusal() is not None:
        return numpy_product
    from weightprint.compare.fused import fused_product

    return fused_product
