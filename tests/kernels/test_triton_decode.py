"""Every code of every format through the kernels' own loading and decoding, in Triton's interpreter."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kernel_backends import INTERPRETING
from kernel_cases import code_case

if not INTERPRETING:
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from weightprint_kernels import reference
from weightprint_kernels.layout import ITEMSIZE, UINT8
from weightprint_kernels.torch_backend import as_tensor
from weightprint_kernels.triton_backend import FORMATS, INTEGERS, accesses
from weightprint_kernels.triton_kernels import decode, load_codes

GUARD = 0x43
VARIANTS = [(dtype, access) for dtype in ITEMSIZE for access in accesses(dtype)]
each_variant = pytest.mark.parametrize(("dtype", "access"), VARIANTS, ids=[f"{d}-access{a}" for d, a in VARIANTS])


@triton.jit
def decode_kernel(  # type: ignore[no-untyped-def]
    buffer,
    start,
    count,
    out,
    FORMAT: tl.constexpr,
    OTHER: tl.constexpr,
    ACCESS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bits of the value, whether it is finite, whether it is zero: one lane an element, int32 [3, BLOCK]."""
    EXPONENT: tl.constexpr = FORMAT[0]
    MANTISSA: tl.constexpr = FORMAT[1]
    ITEMSIZE: tl.constexpr = (1 + EXPONENT + MANTISSA) // 8
    step: tl.constexpr = ITEMSIZE if ACCESS == 1 else 1
    element = tl.arange(0, BLOCK)
    codes = load_codes(buffer + start, element * step, element < count, OTHER, ITEMSIZE, ACCESS)
    value, finite, zero = decode(codes, EXPONENT, MANTISSA, FORMAT[2])
    tl.store(out + element, value.to(tl.int32, bitcast=True))
    tl.store(out + BLOCK + element, finite.to(tl.int32))
    tl.store(out + 2 * BLOCK + element, zero.to(tl.int32))


def _decoded(raw: UINT8, dtype: str, access: int, beyond: int = 0, other: int = 0) -> npt.NDArray[np.int32]:
    """int32 [3, elements + beyond]; elements whose bytes may lie anywhere start a byte off alignment."""
    elements = raw.size // ITEMSIZE[dtype]
    lead = 1 if access == 1 else 16
    data = np.concatenate([np.full(lead, GUARD, np.uint8), raw.reshape(-1), np.full(64, GUARD, np.uint8)])
    unit = 1 if access == 1 else ITEMSIZE[dtype]
    buffer = as_tensor(data)[: len(data) // unit * unit].view(INTEGERS[unit])
    block = triton.next_power_of_2(elements + beyond)
    out = torch.full((3, block), -7, dtype=torch.int32)
    fields = tuple(FORMATS[dtype][name] for name in ("EXPONENT", "MANTISSA", "INFINITIES"))
    decode_kernel[(1,)](buffer, lead // unit, elements, out, FORMAT=fields, OTHER=other, ACCESS=access, BLOCK=block)
    decoded: npt.NDArray[np.int32] = out.numpy()[:, : elements + beyond]
    return decoded


@each_variant
def test_every_code_decodes_as_the_reference_says(dtype: str, access: int) -> None:
    raw = code_case(dtype).raw
    bits, finite, zero = _decoded(raw, dtype, access)
    expected = reference.decode(raw.reshape(-1), dtype)
    np.testing.assert_array_equal(finite, np.isfinite(expected))
    np.testing.assert_array_equal(zero, expected == 0)
    there = np.isfinite(expected)
    exact = expected[there].astype(np.float32)
    np.testing.assert_array_equal(exact.astype(np.float64), expected[there])
    np.testing.assert_array_equal(bits[there], exact.view(np.int32))


@each_variant
def test_lanes_beyond_the_elements_hold_the_other_code(dtype: str, access: int) -> None:
    """NaN, as moments_kernel fills with, and one, whose bytes all differ from their neighbours'."""
    raw = code_case(dtype).raw.reshape(-1)[: 16 * ITEMSIZE[dtype]]
    bits = FORMATS[dtype]["EXPONENT"] + FORMATS[dtype]["MANTISSA"]
    one = ((1 << (FORMATS[dtype]["EXPONENT"] - 1)) - 1) << FORMATS[dtype]["MANTISSA"]
    _bits, finite, zero = _decoded(raw, dtype, access, beyond=16, other=(1 << bits) - 1)
    assert not finite[16:].any() and not zero[16:].any()
    values, finite, _zero = _decoded(raw, dtype, access, beyond=16, other=one)
    assert finite[16:].all()
    np.testing.assert_array_equal(values[16:].view(np.float32), np.ones(16, np.float32))
