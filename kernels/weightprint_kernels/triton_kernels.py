# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Types of a kernel are those of its launch, not of Python.
"""The Triton kernels: raw integer loads, bits decoded by hand, one program per chunk or per strip of a tile.

Every format is given by three constants (EXPONENT and MANTISSA bits, whether it has INFINITIES). Its bits, shifted to
where a binary32 keeps sign, exponent and mantissa, are the value up to a power of two, subnormals included; Triton's
own conversions are not used, because its interpreter gets bf16 subnormals and 8-bit special values wrong.

ACCESS is the bytes that every start and every length is a multiple of: 16 makes 128-bit loads, the element's size one
load per element, 1 one load per byte. Element offsets are int64. No atomics: fixed order, same input, same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_codes(buffer, index, inside, other, ITEMSIZE: tl.constexpr, ACCESS: tl.constexpr):
    """Codes of the elements at ``index``, sign-extended to int32; ``buffer`` holds bytes where ACCESS is 1."""
    if ACCESS == 1 and ITEMSIZE > 1:
        codes = tl.load(buffer + index, mask=inside, other=other & 255).to(tl.int32) & 255
        for byte in tl.static_range(1, ITEMSIZE):
            part = tl.load(buffer + index + byte, mask=inside, other=(other >> (8 * byte)) & 255).to(tl.int32) & 255
            codes = codes | (part << (8 * byte))
        codes = (codes << (32 - 8 * ITEMSIZE)) >> (32 - 8 * ITEMSIZE)
    else:
        codes = tl.load(buffer + index, mask=inside, other=other).to(tl.int32)
    return codes


@triton.jit
def decode(codes, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, INFINITIES: tl.constexpr):
    """(value, is finite, is zero) of sign-extended codes; the value of a code that is not finite means nothing."""
    magnitude = codes & ((1 << (EXPONENT + MANTISSA)) - 1)
    # Without infinities only the last code is special.
    special: tl.constexpr = ((1 << EXPONENT) - 1) << MANTISSA if INFINITIES else (1 << (EXPONENT + MANTISSA)) - 1
    bits = (magnitude << (23 - MANTISSA)) | (codes & -2147483648)
    value = bits.to(tl.float32, bitcast=True)
    if EXPONENT < 8:
        # Exact: the exponent is biased by 2^(EXPONENT-1) - 1 where a binary32 has 127.
        value = value * 2.0 ** (128 - (1 << (EXPONENT - 1)))
    return value, magnitude < special, magnitude == 0


@triton.jit
def moments_kernel(
    buffer,
    table,
    rows,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    INFINITIES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCESS: tl.constexpr,
):
    """Partial row of one chunk of at most BLOCK elements, held in registers so that the shift is its own mean.

    ``table`` is int64 [n, 3]: start (elements, or bytes where ACCESS is 1), element count, row to write.
    """
    ITEMSIZE: tl.constexpr = (1 + EXPONENT + MANTISSA) // 8
    entry = table + tl.program_id(0).to(tl.int64) * 3
    start = tl.load(entry)
    count = tl.load(entry + 1).to(tl.int32)
    row = rows + tl.load(entry + 2) * 8
    if ACCESS == 16:
        start = tl.multiple_of(start, 16 // ITEMSIZE)
        count = tl.multiple_of(count, 16 // ITEMSIZE)
    step: tl.constexpr = ITEMSIZE if ACCESS == 1 else 1
    element = tl.arange(0, BLOCK)
    # Lanes beyond the chunk read as NaN, in every format all ones below the sign, and are left out like any other.
    nan: tl.constexpr = (1 << (EXPONENT + MANTISSA)) - 1
    codes = load_codes(buffer + start, element * step, element < count, nan, ITEMSIZE, ACCESS)
    value, finite, zero = decode(codes, EXPONENT, MANTISSA, INFINITIES)

    # Two counts of at most 8,192 in one sum.
    counts = tl.sum(finite.to(tl.int32) + (zero.to(tl.int32) << 16))
    n_finite = counts & 0xFFFF
    low = tl.min(tl.where(finite, value, float("inf")))
    high = tl.max(tl.where(finite, value, float("-inf")))
    total = tl.sum(tl.where(finite, value, 0.0))
    mean = total / tl.maximum(n_finite, 1).to(tl.float32)
    # Held between the extremes: exact where the chunk is constant, finite where the sum overflowed.
    shift = tl.where(n_finite > 0, tl.minimum(tl.maximum(mean, low), high), 0.0)
    # NaN marks what is left out, so that values alone stay in registers across the reductions above.
    deviation = tl.where(finite, value, float("nan")) - shift
    centred = tl.where(deviation == deviation, deviation, 0.0)  # noqa: PLR0124
    squared = centred * centred

    tl.store(row, shift)
    tl.store(row + 1, tl.sum(centred))
    tl.store(row + 2, tl.sum(squared))
    tl.store(row + 3, tl.sum(squared * centred))
    tl.store(row + 4, tl.sum(squared * squared))
    tl.store(row + 5, tl.where(n_finite > 0, tl.maximum(high, -low), 0.0))
    tl.store(row + 6, n_finite.to(tl.float32))
    tl.store(row + 7, (counts >> 16).to(tl.float32))


@triton.jit
def column_energies_kernel(
    buffer,
    table,
    sums,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    INFINITIES: tl.constexpr,
    ACCESS: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Σ w² down a strip of a tile's columns, nan where one is not finite.

    ``table`` is int64 [n, 5]: start and stride (elements, or bytes where ACCESS is 1), rows, columns, tile number.
    SHAPE is (rows read together, columns of the strip, columns of a row of ``sums``).
    """
    ITEMSIZE: tl.constexpr = (1 + EXPONENT + MANTISSA) // 8
    ROWS: tl.constexpr = SHAPE[0]
    COLUMNS: tl.constexpr = SHAPE[1]
    entry = table + tl.program_id(0).to(tl.int64) * 5
    start = tl.load(entry)
    stride = tl.load(entry + 1)
    height = tl.load(entry + 2).to(tl.int32)
    width = tl.load(entry + 3).to(tl.int32)
    if ACCESS == 16:
        start = tl.multiple_of(start, 16 // ITEMSIZE)
        stride = tl.multiple_of(stride, 16 // ITEMSIZE)
        width = tl.multiple_of(width, 16 // ITEMSIZE)
    step: tl.constexpr = ITEMSIZE if ACCESS == 1 else 1
    row = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    index = row.to(tl.int64)[:, None] * stride + column[None, :] * step
    across = (column < width)[None, :]
    energies = tl.zeros([ROWS, COLUMNS], tl.float32)
    for top in range(0, height, ROWS):
        inside = (row < height - top)[:, None] & across
        codes = load_codes(buffer + start + top * stride, index, inside, 0, ITEMSIZE, ACCESS)
        value, finite, _zero = decode(codes, EXPONENT, MANTISSA, INFINITIES)
        energies += tl.where(finite, value * value, float("nan"))
    target = sums + tl.load(entry + 4) * SHAPE[2] + column
    tl.store(target, tl.sum(energies, axis=0))
