# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Types of a kernel are those that Numba infers at its call, not Python's.
"""The kernels of the CPU: chunks, rectangles and column energies out of the sums of :mod:`line_sums`.

Sums are taken about zero, in float32 over one chunk and in float64 from there on. That is exact enough wherever a
chunk's mean is not larger than its standard deviation, which is what weights look like; and it needs one visit to the
bytes. A chunk of a larger mean is summed again about that mean, while it is in the cache; one that holds a value that
is not finite, or whose spread or sums are beyond float32, element by element in float64.

Every function releases the interpreter's lock (:mod:`weightprint_kernels.compiled`).
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from weightprint_kernels.compiled import compiled
from weightprint_kernels.layout import CHUNK_ELEMENTS, TILE_COLUMNS
from weightprint_kernels.line_sums import LINE_BYTES, float_of, line_sums

SMALLEST_VARIANCE = 1e-17
"""Mean square below which fourth powers leave float32's normal range."""
SMALLEST_ENERGY = 1e-30
"""Sum of squares below which squares that underflowed could be missing."""
FLUSH_ROWS = 64
"""Squares added up in float32 before a column's energy goes on in float64."""

FAULT_BYTES = 2**16

NEAREST_PREFETCH, PREFETCH_PHASE, PAGE_BYTES = 2048, 512, 4096
"""Bytes: see :func:`prefetch_distance`."""

Form = namedtuple("Form", "tag itemsize magnitude special scale table order block")
"""A format for the kernels: see numba_backend."""


loop = compiled(error_model="numpy", boundscheck=False)


@loop
def touch(data):
    """Read a byte of every 64 KiB, which is what Linux maps at one page fault; what it gives means nothing.

    Faults taken here cost half of what they cost in the middle of the arithmetic.
    """
    seen = np.uint8(0)
    for byte in range(0, len(data), FAULT_BYTES):
        seen |= data[byte]
    return seen | data[-1] if len(data) > 0 else seen


@loop
def moments_of_chunks(data, offsets, counts, form, rows):
    """Partial rows of chunks, written into ``rows`` float32 [n, 8]."""
    pad = np.zeros(LINE_BYTES, np.uint8)
    for number in range(len(offsets)):
        ahead = prefetch_distance(data, offsets[number])
        start, count = offsets[number], counts[number]
        found = sums_about_zero(data, start, count, None, 0, form, ahead, pad)
        if holds(found, count, form):
            shift, s1, s2, s3, s4, largest, finite = 0.0, found[0], found[1], found[2], found[3], found[4], count
        else:
            shift, s1, s2, s3, s4, largest, finite = sums_about_mean(data, start, count, found, form)
        row = rows[number]
        row[0], row[1], row[2], row[3], row[4] = shift, s1, s2, s3, s4
        row[5], row[6], row[7] = value_of(largest, form), finite, found[5]


@loop
def reduce_rectangles(data, table, form, moments, energies):
    """Merged moments of rectangles, and the energies of the rows or columns of those that ask for them.

    ``table`` is int64 [n, 5]: offset and stride in bytes, rows, columns, axis of the energies (0 none, 1 rows,
    2 columns). ``moments``, float64 [n, 7], gets count of finite elements, mean, M2, M3, M4, abs max and zeros;
    ``energies``, float64, those of one rectangle after the other.
    """
    pad = np.zeros(LINE_BYTES, np.uint8)
    done = 0
    for number in range(len(table)):
        offset, stride, rows, columns, axis = table[number]
        units = rows if axis == 1 else columns if axis == 2 else 0
        if axis == 0 and stride == columns * form.itemsize:
            rows, columns = 1, rows * columns
        own = energies[done : done + units]
        reduce_rectangle(data, (offset, stride, rows, columns, axis), form, pad, moments[number], own)
        done += units


@loop
def reduce_rectangle(data, rectangle, form, pad, moments, energies):  # noqa: PLR0912  calls in the loop cost
    """One rectangle of the above, row by row; two rows at a time where columns are added up, which halves the traffic
    to the sums of the columns. The two lie half a band apart, so that each follows on in memory to the next."""
    offset, stride, rows, columns, axis = rectangle
    ahead = prefetch_distance(data, offset)
    places = -(-columns // len(form.order)) * len(form.order) if axis == 2 else 0
    squares, total = np.zeros(places, np.float32), np.zeros(places)
    # About zero: S1 to S4 of all chunks that hold. About their means: chunks that do not, merged as they come.
    sums, other = np.zeros(4), np.zeros(5)
    held = zeros = largest = 0
    for top in range(0, rows, FLUSH_ROWS):
        height = min(FLUSH_ROWS, rows - top)
        pairs = height // 2 if axis == 2 else 0
        largest_in_band = 0
        for row in range(top, top + height - pairs):
            together = 2 if row < top + pairs else 1
            apart = (height - pairs) * stride
            each = CHUNK_ELEMENTS // together
            energy = 0.0
            for left in range(0, columns, each):
                count = min(each, columns - left)
                start = offset + row * stride + left * form.itemsize
                if together == 2:
                    found = sums_of_two(data, (start, start + apart), count, squares, left, form, ahead, pad)
                elif axis == 2:
                    found = sums_about_zero(data, start, count, squares, left, form, ahead, pad)
                else:
                    found = sums_about_zero(data, start, count, None, 0, form, ahead, pad)
                largest_in_band = max(largest_in_band, found[4])
                zeros += found[5]
                if holds(found, count * together, form):
                    held += count * together
                    for power, sum in enumerate(found[:4]):
                        sums[power] += sum
                    energy += found[1]
                    largest = max(largest, found[4])
                else:
                    for number in range(together):
                        begin = start + number * apart
                        alone = sums_about_zero(data, begin, count, None, 0, form, ahead, pad)
                        about_mean = sums_about_mean(data, begin, count, alone, form)
                        add_central(other, about_mean)
                        energy += energy_of(about_mean, count)
                        largest = max(largest, about_mean[5])
            if axis == 1:
                energies[row] = energy
        if axis == 2:
            band = (offset + top * stride, stride, height)
            flush(squares, total, largest_in_band < form.special, form, data, band, columns)
    add_central(other, (0.0, sums[0], sums[1], sums[2], sums[3], largest, held))
    moments[:5] = other
    moments[5] = value_of(largest, form)
    moments[6] = zeros
    if axis == 2:
        into_order(total, form, energies)


@loop
def energies_of_tiles(data, offsets, strides, heights, widths, form, sums):
    """Energy of each column of tiles, written into ``sums`` float32 [n, TILE_COLUMNS]."""
    pad = np.zeros(LINE_BYTES, np.uint8)
    squares, total = np.zeros(TILE_COLUMNS, np.float32), np.zeros(TILE_COLUMNS)
    for number in range(len(offsets)):
        width = widths[number]
        ahead = prefetch_distance(data, offsets[number])
        total[:] = 0
        largest = 0
        for row in range(heights[number]):
            start = offsets[number] + row * strides[number]
            largest_now = sums_about_zero(data, start, width, squares, 0, form, ahead, pad)[4]
            largest = max(largest, largest_now)
            if (row + 1) % FLUSH_ROWS == 0 or row == heights[number] - 1:
                first = row // FLUSH_ROWS * FLUSH_ROWS
                top = offsets[number] + first * strides[number]
                finite = largest < form.special
                flush(squares, total, finite, form, data, (top, strides[number], row + 1 - first), width)
                largest = 0
        sums[number, width:] = 0
        into_order(total, form, sums[number, :width])


@loop
def prefetch_distance(data, offset):
    """How many bytes ahead to ask for the lines of what begins at ``offset``: 2 to 6 KiB.

    So chosen that wherever a tensor lies, it is at the same lines of a block that a next page is asked for. Where that
    falls between the fifth and the tenth line, as it does for one offset in sixteen of a fixed distance, moments took
    a third longer.
    """
    begin = data.ctypes.data + offset + NEAREST_PREFETCH
    return NEAREST_PREFETCH + (PREFETCH_PHASE - begin) % PAGE_BYTES


@loop
def sums_about_zero(data, start, count, squares, first, form, ahead, pad):
    """S1 to S4 about zero in float64, largest magnitude code and number of zeros of ``count`` elements.

    ``squares`` (or None) gets their squares from ``first`` on, in the order of lines. The sums mean something only
    where :func:`holds` says so.
    """
    lines = count * form.itemsize // LINE_BYTES
    s1, s2, s3, s4, largest, smallest = line_sums(data, start, lines, form.block, ahead, None, squares, first, form.tag)
    zeros = count_zeros(data, start, lines * LINE_BYTES, form.itemsize) if smallest == 0 else 0
    t1, t2, t3, t4, large, more = sums_of_rest(data, start, count, squares, first, form, pad)
    scale = form.scale
    return (
        (s1 + t1) * scale,
        (s2 + t2) * scale**2,
        (s3 + t3) * scale**3,
        (s4 + t4) * scale**4,
        max(largest, large),
        zeros + more,
    )


@loop
def sums_of_two(data, pair, count, squares, first, form, ahead, pad):
    """:func:`sums_about_zero` of ``count`` elements from each of two starts, whose squares are added up together."""
    lines = count * form.itemsize // LINE_BYTES
    s1, s2, s3, s4, largest, smallest = line_sums(
        data, pair, lines, form.block // 2, ahead, None, squares, first, form.tag
    )
    zeros = 0
    for start in pair:
        if smallest == 0:
            zeros += count_zeros(data, start, lines * LINE_BYTES, form.itemsize)
        t1, t2, t3, t4, large, more = sums_of_rest(data, start, count, squares, first, form, pad)
        s1, s2, s3, s4 = s1 + t1, s2 + t2, s3 + t3, s4 + t4
        largest, zeros = max(largest, large), zeros + more
    scale = form.scale
    return s1 * scale, s2 * scale**2, s3 * scale**3, s4 * scale**4, largest, zeros


@loop
def sums_of_rest(data, start, count, squares, first, form, pad):
    """The same, not scaled, of what ``count`` elements have beyond their last whole line."""
    lines = count * form.itemsize // LINE_BYTES
    rest = count * form.itemsize - lines * LINE_BYTES
    if rest == 0:
        return 0.0, 0.0, 0.0, 0.0, 0, 0
    pad[rest:] = 0
    for byte in range(rest):
        pad[byte] = data[start + lines * LINE_BYTES + byte]
    place = first + lines * len(form.order)
    s1, s2, s3, s4, largest, _smallest = line_sums(pad, 0, 1, 1, 0, None, squares, place, form.tag)
    return s1, s2, s3, s4, largest, count_zeros(pad, 0, rest, form.itemsize)


@loop
def holds(found, count, form):
    """Whether sums about zero are those of finite values, within float32's range, of a mean below the deviation."""
    s1, s2, _s3, s4, largest, _zeros = found
    if largest >= form.special or not np.isfinite(s4):
        return False
    return largest == 0 or (s2 > SMALLEST_VARIANCE * count and 2 * s1 * s1 <= s2 * count)


@loop
def sums_about_mean(data, start, count, found, form):
    """Shift, S1 to S4, largest finite magnitude code and number of the finite elements.

    ``found`` are the sums about zero. A chunk of finite values of a large mean is summed about that mean in float32;
    where that does not hold either, element by element in float64.
    """
    s1, s2, _s3, _s4, largest, _zeros = found
    lines = count * form.itemsize // LINE_BYTES
    if largest < form.special and np.isfinite(s2) and lines > 0:
        shift = np.float32(s1 / count)
        scaled = np.float32(shift / form.scale)
        t1, t2, t3, t4, _large, _small = line_sums(data, start, lines, form.block, 0, scaled, None, 0, form.tag)
        done = lines * LINE_BYTES // form.itemsize
        u1, u2, u3, u4 = sums_about(data, start + lines * LINE_BYTES, count - done, float(shift), form)
        scale = form.scale
        u1, u2, u3, u4 = u1 + t1 * scale, u2 + t2 * scale**2, u3 + t3 * scale**3, u4 + t4 * scale**4
        if holds((u1, u2, u3, u4, largest, 0), count, form):
            return float(shift), u1, u2, u3, u4, largest, count
    return exact_sums(data, start, count, form)


@loop
def sums_about(data, start, count, shift, form):
    """S1 to S4 about ``shift`` of finite elements, one by one."""
    s1 = s2 = s3 = s4 = 0.0
    for number in range(count):
        code = code_at(data, start + number * form.itemsize, form.itemsize)
        magnitude = code & form.magnitude
        value = value_of(magnitude, form)
        d = (value if magnitude == code else -value) - shift
        s1 += d
        s2 += d * d
        s3 += d * d * d
        s4 += d * d * d * d
    return s1, s2, s3, s4


@loop
def exact_sums(data, start, count, form):
    """Shift, S1 to S4, largest finite magnitude code and number of the finite elements, one by one in float64."""
    raw = data[start : start + count * form.itemsize]
    if form.itemsize == 1:
        return exact_sums_of(raw, form)
    if form.itemsize == 2:
        return exact_sums_of(raw.view(np.uint16), form)
    return exact_sums_of(raw.view(np.uint32), form)


@loop
def exact_sums_of(codes, form):
    """The same of an array of codes."""
    values = np.empty(len(codes))
    finite = largest = 0
    low, high, total = np.inf, -np.inf, 0.0
    for code in codes:
        magnitude = np.int64(code) & form.magnitude
        if magnitude < form.special:
            value = value_of(magnitude, form)
            value = value if magnitude == code else -value
            values[finite] = value
            low, high, total = min(low, value), max(high, value), total + value
            largest = max(largest, magnitude)
            finite += 1
    if finite == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0
    # As float32 holds it, and exact where all are equal.
    shift = float(np.float32(min(max(total / finite, low), high)))
    s1 = s2 = s3 = s4 = 0.0
    for value in values[:finite]:
        d = value - shift
        s1 += d
        s2 += d * d
        s3 += d * d * d
        s4 += d * d * d * d
    return shift, s1, s2, s3, s4, largest, finite


@loop
def energy_of(about_mean, count):
    """Σ w² of ``count`` elements, nan where one is not finite."""
    shift, s1, s2, _s3, _s4, _largest, finite = about_mean
    return s2 + 2 * shift * s1 + finite * shift * shift if finite == count else np.nan


@loop
def add_central(total, about):
    """Merge sums about a shift into ``total``: count, mean, M2, M3, M4 (Pébay 2008; see merge)."""
    shift, s1, s2, s3, s4, _largest, count = about
    if count == 0:
        return
    d = s1 / count
    mean = shift + d
    m2 = max(s2 - count * d * d, 0.0)
    m3 = s3 - 3 * d * s2 + 2 * count * d**3
    m4 = s4 - 4 * d * s3 + 6 * d * d * s2 - 3 * count * d**4
    before, whole = total[0], total[0] + count
    e = mean - total[1]
    share, rest = count / whole, before / whole
    product = before * share * e * e
    total[4] += m4 + product * e * e * (rest * rest - rest * share + share * share)
    total[4] += 6 * e * e * (rest * rest * m2 + share * share * total[2]) + 4 * e * (rest * m3 - share * total[3])
    total[3] += m3 + product * e * (rest - share) + 3 * e * (rest * m2 - share * total[2])
    total[2] += m2 + product
    total[1] += e * share
    total[0] = whole


@loop
def flush(squares, total, finite, form, data, band, columns):
    """Move the squares of a band of rows (first byte, stride, number) into ``total``.

    Columns are done again where float32 cannot hold them, and all of them where some element is not finite.
    """
    top, stride, rows = band
    per_line = len(form.order)
    scale = form.scale * form.scale
    whole = columns // per_line * per_line
    # The bits of floats that are not negative have their order, and those of NaN come last.
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    for bits in squares[:whole].view(np.uint32):
        low, high = np.uint32(min(low, bits)), np.uint32(max(high, bits))
    if finite and np.isfinite(float_of(high)) and float_of(low) * scale > SMALLEST_ENERGY:
        for place in range(whole):
            total[place] += squares[place] * scale
        begin = whole
    else:
        begin = 0
    end = -(-columns // per_line) * per_line
    for place in range(begin, end):
        column = place // per_line * per_line + form.order[place % per_line]
        if column < columns:
            energy = squares[place] * scale
            if not (finite and energy > SMALLEST_ENERGY and np.isfinite(energy)):
                energy = energy_of_column(data, top + column * form.itemsize, stride, rows, form)
            total[place] += energy
    squares[:end] = 0


@loop
def energy_of_column(data, start, stride, rows, form):
    """Σ w² down a column in float64, nan where one is not finite."""
    energy = 0.0
    for row in range(rows):
        magnitude = code_at(data, start + row * stride, form.itemsize) & form.magnitude
        value = value_of(magnitude, form) if magnitude < form.special else np.nan
        energy += value * value
    return energy


@loop
def into_order(total, form, energies):
    """Copy energies in the order of lines into the order of columns."""
    per_line = len(form.order)
    for place in range(len(total)):
        column = place // per_line * per_line + form.order[place % per_line]
        if column < len(energies):
            energies[column] = total[place]


@loop
def count_zeros(data, start, length, itemsize):
    """How many elements of ``length`` bytes are zero, of either sign."""
    zeros = 0
    if itemsize == 1:
        for code in data[start : start + length]:
            zeros += (code & np.uint8(0x7F)) == 0
    elif itemsize == 2:
        for half in data[start : start + length].view(np.uint16):
            zeros += (half & np.uint16(0x7FFF)) == 0
    else:
        for word in data[start : start + length].view(np.uint32):
            zeros += (word & np.uint32(0x7FFFFFFF)) == 0
    return zeros


@loop
def code_at(data, position, itemsize):
    """The little-endian code of one element."""
    code = np.int64(0)
    for byte in range(itemsize):
        code |= np.int64(data[position + byte]) << (8 * byte)
    return code


@loop
def value_of(magnitude, form):
    """The value of a magnitude code, in float64."""
    if form.itemsize == 4:
        return float(float_of(np.uint32(magnitude)))
    return form.table[magnitude]


@loop
def read_words(data):
    """Look at every 8 bytes and do nothing with them: the limit that the kernels are measured against."""
    seen = np.uint64(0)
    for word in data.view(np.uint64):
        seen ^= word
    return seen
