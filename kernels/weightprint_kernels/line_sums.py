# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,type-arg"
# Types of what is built here are LLVM's, not Python's.
"""Power sums of raw bytes, one cache line of 64 bytes a step: the loop that every byte goes through on the CPU.

Written in LLVM's vector instructions, because two things decide its speed and a loop in Python source gives neither.
Codes are compared as packed integers of their own width (largest and smallest magnitude cost three instructions for a
whole line), and each step asks for a line some KiB ahead: hardware prefetchers stop at the border of a page, and
arithmetic this dense leaves the processor no room to run ahead by itself. Vectors are 16 lanes wide; LLVM cuts them
to what the processor has.

Values are taken about zero and scaled by a power of two per format (:data:`SCALE`): 8-bit formats are read as binary16
after a shift of their bits. Codes that are not finite give sums that mean nothing; the largest code tells.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from weightprint_kernels.layout import INT64, ITEMSIZE

LINE_BYTES = 64
LANES = 16
CHAINS = 2
"""Accumulators of each sum, so that additions need not wait for each other."""
ADDITIONS = 12
"""Of squares in float32 before they go on in float64. One more for the two chains and one for the square itself are
rounded by 2^-24 each: less than 1e-6 in all, whatever the values are."""

F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
FLOATS, DOUBLES = ir.VectorType(F32, LANES), ir.VectorType(ir.DoubleType(), LANES)
CONTRACT = ("contract",)


def supported() -> bool:
    """Whether this processor widens binary16 in hardware; without that the loop would call a library per element."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return bool(llvmlite.binding.get_host_cpu_features().get("f16c", False))


@dataclass(frozen=True)
class _Format:
    """How one format is unpacked: ``tag`` stands for it in Numba's types.

    ``unpack`` turns a line into vectors of LANES floats; ``order`` says which element of the line each of them holds.
    """

    tag: type
    unpack: Callable[[Any, Any], list[Any]]
    order: tuple[tuple[int, int], ...]  # (first element, step) of each vector
    scale: float = 1.0


def _splat(bits: int, value: int, count: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(bits), count), [value] * count)


def _from_f32(builder, line) -> list[Any]:
    return [builder.bitcast(line, FLOATS)]


def _from_bf16(builder, line) -> list[Any]:
    """A word holds two: the lower one shifted up, the upper one with the lower masked off."""
    words = builder.bitcast(line, ir.VectorType(I32, LANES))
    lower = builder.shl(words, _splat(32, 16, LANES))
    upper = builder.and_(words, _splat(32, 0xFFFF0000, LANES))
    return [builder.bitcast(part, FLOATS) for part in (lower, upper)]


def _from_f16(builder, line) -> list[Any]:
    return _widened(builder, line)


def _from_f8_e5m2(builder, line) -> list[Any]:
    """E5M2 is the upper byte of a binary16."""
    pairs = builder.bitcast(line, ir.VectorType(ir.IntType(16), 2 * LANES))
    even = builder.shl(pairs, _splat(16, 8, 2 * LANES))
    odd = builder.and_(pairs, _splat(16, 0xFF00, 2 * LANES))
    return [*_widened(builder, even), *_widened(builder, odd)]


def _from_f8_e4m3(builder, line) -> list[Any]:
    """Sign and magnitude at their places in a binary16, whose exponent is then 8 too small."""
    pairs = builder.bitcast(line, ir.VectorType(ir.IntType(16), 2 * LANES))
    parts = []
    for upper in (builder.shl(pairs, _splat(16, 8, 2 * LANES)), pairs):
        magnitude = builder.and_(builder.lshr(upper, _splat(16, 1, 2 * LANES)), _splat(16, 0x3F80, 2 * LANES))
        sign = builder.and_(upper, _splat(16, 0x8000, 2 * LANES))
        parts += _widened(builder, builder.or_(sign, magnitude))
    return parts


def _widened(builder, codes) -> list[Any]:
    """32 binary16 codes as two vectors of floats."""
    halves = builder.bitcast(codes, ir.VectorType(ir.HalfType(), 2 * LANES))
    parts = []
    for first in (0, LANES):
        chosen = ir.Constant(ir.VectorType(I32, LANES), list(range(first, first + LANES)))
        parts.append(builder.fpext(builder.shuffle_vector(halves, halves, chosen), FLOATS))
    return parts


FORMATS = {
    "bf16": _Format(np.uint16, _from_bf16, ((0, 2), (1, 2))),
    "f16": _Format(np.int16, _from_f16, ((0, 1), (16, 1))),
    "f32": _Format(np.uint32, _from_f32, ((0, 1),)),
    "f8_e4m3": _Format(np.uint8, _from_f8_e4m3, ((0, 2), (32, 2), (1, 2), (33, 2)), scale=2.0**8),
    "f8_e5m2": _Format(np.int8, _from_f8_e5m2, ((0, 2), (32, 2), (1, 2), (33, 2))),
}
SCALE = {dtype: format.scale for dtype, format in FORMATS.items()}
"""What the values of a format were divided by: S1 is to be multiplied by it, S2 by its square, and so on."""

_BY_TAG = {np.dtype(format.tag).name: dtype for dtype, format in FORMATS.items()}


def tag(dtype: str) -> Any:
    """The scalar whose type tells :func:`line_sums` the format."""
    return FORMATS[dtype].tag(0)


def _chains(dtype: str) -> int:
    return min(CHAINS, len(FORMATS[dtype].order))


def block_lines(dtype: str) -> int:
    """How many lines make ADDITIONS to each lane of an accumulator."""
    return ADDITIONS * _chains(dtype) // len(FORMATS[dtype].order)


def line_order(dtype: str) -> INT64:
    """Which element of its line each energy stands for, int64 [elements of a line]."""
    order = [first + step * lane for first, step in FORMATS[dtype].order for lane in range(LANES)]
    return np.array(order, np.int64)


@intrinsic
def line_sums(  # noqa: PLR0913, PLR0917  an intrinsic takes plain arguments
    _context, data, start, lines, block, ahead, shift, energies, first, tag
):
    """S1, S2, S3, S4 (float64), largest and smallest magnitude code (int64) of whole lines.

    ``lines`` lines from byte ``start`` of ``data``, uint8 [bytes], at any alignment; or as many from each of two
    bytes, where ``start`` is a pair. Each lane is added up in float32 over ``block`` lines, in float64 over the blocks.
    The line ``ahead`` bytes ahead is asked for.
    Sums are about zero, or about ``shift``, float32, where it is not None. Where ``energies``, float32, is not None,
    each element's square is added to ``energies[first + i]``, in the order of :func:`line_order`; it goes with sums
    about zero. ``tag`` is one of :func:`tag`. Without lines the smallest code is the largest that its bits can hold.
    """
    dtype = _BY_TAG[str(tag)]
    result = types.Tuple((types.float64,) * 4 + (types.int64,) * 2)
    several = isinstance(start, types.UniTuple)
    places = types.UniTuple(types.intp, len(start)) if several else types.intp
    moved = types.none if isinstance(shift, types.NoneType) else types.float32
    signature = result(data, places, types.intp, types.intp, types.intp, moved, energies, types.intp, tag)

    def generate(context, builder, signature, arguments):
        _data, start, lines, block, ahead, shift, _energies, first, _tag = arguments
        base = _bytes_of(context, builder, signature.args[0], arguments[0])
        starts = cgutils.unpack_tuple(builder, start) if several else [start]
        sources = [builder.gep(base, [start]) for start in starts]
        target = None
        if not isinstance(energies, types.NoneType):
            whole = _bytes_of(context, builder, signature.args[6], arguments[6])
            target = builder.gep(whole, [builder.mul(first, ir.Constant(I64, 4))])
        about = None if moved is types.none else _everywhere(builder, shift)
        length, step = (builder.mul(count, ir.Constant(I64, LINE_BYTES)) for count in (lines, block))
        totals, largest, smallest = _loops(builder, sources, (length, step, ahead), (about, target), dtype)
        figures = [_across(builder, total, builder.fadd) for total in totals]
        figures += [
            builder.zext(_across(builder, largest, _larger(builder)), I64),
            builder.zext(_across(builder, smallest, _smaller(builder)), I64),
        ]
        return context.make_tuple(builder, signature.return_type, figures)

    return signature, generate


def _bytes_of(context, builder, array_type, array):
    """The address of an array's first element."""
    return builder.bitcast(context.make_array(array_type)(context, builder, array).data, I8.as_pointer())


def _everywhere(builder, number):
    """One float in every lane."""
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), number, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _loops(builder, sources, lengths, wanted, dtype):
    """Lines in blocks: ([S1, S2, S3, S4] as vectors of float64, largest codes, smallest codes)."""
    length, step, ahead = lengths
    bits = 8 * ITEMSIZE[dtype]
    lanes = 8 * LINE_BYTES // bits
    nothing, nothing_wide = (ir.Constant(vector, [0.0] * LANES) for vector in (FLOATS, DOUBLES))
    sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(_chains(dtype))] for _power in range(4)]
    totals = [cgutils.alloca_once_value(builder, nothing_wide) for _power in range(4)]
    largest = cgutils.alloca_once_value(builder, _splat(bits, 0, lanes))
    smallest = cgutils.alloca_once_value(builder, _splat(bits, -1, lanes))
    with cgutils.for_range_slice(builder, ir.Constant(I64, 0), length, step, I64) as (begin, _):
        end = builder.add(begin, step)
        end = builder.select(builder.icmp_signed("<", end, length), end, length)
        for sum in itertools.chain(*sums):
            builder.store(nothing, sum)
        with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, LINE_BYTES), I64) as (position, _):
            addresses = [builder.gep(source, [position]) for source in sources]
            for address in addresses:
                _prefetch(builder, builder.gep(address, [ahead]))
            _line(builder, addresses, position, wanted, dtype, (sums, largest, smallest))
        for total, own in zip(totals, sums, strict=True):
            together = functools.reduce(builder.fadd, [builder.load(sum) for sum in own])
            builder.store(builder.fadd(builder.load(total), builder.fpext(together, DOUBLES)), total)
    return [builder.load(total) for total in totals], builder.load(largest), builder.load(smallest)


def _line(builder, addresses, position, wanted, dtype, accumulators):
    """Take in one line of each of ``addresses``; their squares go to the same place of the target."""
    format, bits = FORMATS[dtype], 8 * ITEMSIZE[dtype]
    about, target = wanted
    sums, largest, smallest = accumulators
    codes = ir.VectorType(ir.IntType(bits), 8 * LINE_BYTES // bits)
    squares: list[list[Any]] = [[] for _ in format.order]
    for address in addresses:
        line = builder.load(builder.bitcast(address, codes.as_pointer()), align=1)
        magnitudes = builder.and_(line, _splat(bits, (1 << (bits - 1)) - 1, codes.count))
        builder.store(_larger(builder)(builder.load(largest), magnitudes), largest)
        builder.store(_smaller(builder)(builder.load(smallest), magnitudes), smallest)
        for number, value in enumerate(format.unpack(builder, line)):
            if about is not None:
                value = builder.fsub(value, about)  # noqa: PLW2901
            square = builder.fmul(value, value)
            squares[number].append(square)
            s1, s2, s3, s4 = (own[number % len(own)] for own in sums)
            builder.store(builder.fadd(builder.load(s1), value), s1)
            builder.store(builder.fadd(builder.load(s2), square), s2)
            builder.store(_multiply_add(builder, square, value, builder.load(s3)), s3)
            builder.store(_multiply_add(builder, square, square, builder.load(s4)), s4)
    if target is not None:
        # As many floats as the line has elements: 4 bytes each.
        begin = builder.mul(position, ir.Constant(I64, 4 // ITEMSIZE[dtype]))
        for number, own in enumerate(squares):
            offset = builder.add(begin, ir.Constant(I64, number * LANES * 4))
            place = builder.bitcast(builder.gep(target, [offset]), FLOATS.as_pointer())
            added = functools.reduce(builder.fadd, own)
            builder.store(builder.fadd(builder.load(place, align=4), added), place, align=4)


def _prefetch(builder, address):
    """Ask for a line to be read into every cache; an address that is not mapped is ignored."""
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    read, keep, data = (ir.Constant(I32, value) for value in (0, 3, 1))
    builder.call(function, [address, read, keep, data])


def _multiply_add(builder, a, b, c):
    """a b + c, rounded once where the processor can."""
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


def _larger(builder):
    return lambda a, b: builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _smaller(builder):
    return lambda a, b: builder.select(builder.icmp_unsigned("<", a, b), a, b)


def _across(builder, vector, combine):
    """All lanes of a vector combined, halves with halves."""
    count = vector.type.count
    while count > 1:
        count //= 2
        halves = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
            )
            for start in (0, count)
        ]
        vector = combine(*halves)
    return builder.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def float_of(_context, bits):
    """The binary32 number of these 32 bits."""
    return types.float32(types.uint32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], F32
    )
