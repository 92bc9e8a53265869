"""Merging partial rows, against moments of all elements in extended precision, over any cut and any shift."""

import itertools
import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weightprint_kernels.layout import INT64
from weightprint_kernels.merge import MergedMoments, as_merged, merge_groups, merge_moments, merge_rows, row_energies

FLOAT64 = npt.NDArray[np.float64]
LAW = settings(deadline=None, derandomize=True, max_examples=100)

LARGEST = 4.0
ELEMENTS = st.one_of(st.just(0.0), st.floats(-LARGEST, LARGEST, width=32))
"""Half of the elements are zero, so that zeros are counted."""
VALUES = hnp.arrays(np.float64, st.integers(0, 12), elements=ELEMENTS)
SHIFTS = st.floats(-LARGEST, LARGEST, width=32)
CHUNKS = st.lists(st.tuples(VALUES, SHIFTS), min_size=1, max_size=8)
Chunk = tuple[FLOAT64, float]


def partial_row(values: FLOAT64, shift: float) -> FLOAT64:
    """What a kernel writes for a chunk, with any shift at all."""
    if not len(values):
        return np.zeros(8)
    d = values - shift
    sums = [math.fsum(d**power) for power in (1, 2, 3, 4)]
    return np.array([shift, *sums, np.abs(values).max(), len(values), (values == 0).sum()])


def partial_rows(chunks: list[Chunk]) -> FLOAT64:
    return np.array([partial_row(values, shift) for values, shift in chunks]).reshape(-1, 8)


def elements(chunks: list[Chunk]) -> FLOAT64:
    return np.concatenate([np.zeros(0), *(values for values, _shift in chunks)])


def assert_moments_of(merged: MergedMoments, values: FLOAT64) -> None:
    """Counts exactly; sums as near as float64 comes when a shift lies anywhere between the largest elements."""
    n = len(values)
    largest = float(np.abs(values).max(initial=0.0))
    assert (merged.n_finite, merged.zeros, merged.abs_max) == (n, int((values == 0).sum()), largest)
    wide = values.astype(np.longdouble)
    mean = wide.sum() / max(n, 1)
    assert abs(merged.mean - mean) <= 1e-14 * LARGEST
    for power, sum_of_powers in ((2, merged.m2), (3, merged.m3), (4, merged.m4)):
        error = abs(sum_of_powers - ((wide - mean) ** power).sum())
        assert error <= 1e-14 * n * (2 * LARGEST) ** power, f"M{power} is off by {error}"


@LAW
@given(CHUNKS)
def test_merged_rows_are_the_moments_of_all_elements(chunks: list[Chunk]) -> None:
    assert_moments_of(merge_rows(partial_rows(chunks)), elements(chunks))


@LAW
@given(VALUES, st.lists(st.tuples(st.integers(0, 12), SHIFTS), max_size=5), SHIFTS)
def test_cutting_changes_nothing(values: FLOAT64, cuts: list[tuple[int, float]], last_shift: float) -> None:
    borders = [0, *sorted(min(place, len(values)) for place, _shift in cuts), len(values)]
    shifts = [shift for _place, shift in cuts] + [last_shift]
    chunks = [(values[a:b], shift) for a, b, shift in zip(borders, borders[1:], shifts, strict=False)]
    assert_moments_of(merge_rows(partial_rows(chunks)), values)


@LAW
@given(CHUNKS, st.randoms(use_true_random=False))
def test_order_changes_nothing_beyond_rounding(chunks: list[Chunk], random: Random) -> None:
    shuffled = list(chunks)
    random.shuffle(shuffled)
    assert_moments_of(merge_rows(partial_rows(shuffled)), elements(chunks))


@LAW
@given(CHUNKS, st.data())
def test_groups_are_merged_each_on_its_own(chunks: list[Chunk], data: st.DataObject) -> None:
    inner = data.draw(st.sets(st.integers(1, max(1, len(chunks) - 1))))
    starts = sorted({0} | {start for start in inner if start < len(chunks)})
    groups = [chunks[a:b] for a, b in zip(starts, [*starts[1:], len(chunks)], strict=True)]
    merged = merge_groups(partial_rows(chunks), np.array(starts, np.int64))
    assert (merged.shape, merged.dtype) == ((len(groups), 7), np.float64)
    for one, group in zip(as_merged(merged), groups, strict=True):
        assert_moments_of(one, elements(group))


FIRST: INT64 = np.zeros(1, np.int64)


def merged_parts(parts: list[list[Chunk]]) -> FLOAT64:
    """Moments of each part, float64 [parts, 7]."""
    return np.concatenate([merge_groups(partial_rows(part), FIRST) for part in parts])


@LAW
@given(st.lists(CHUNKS, min_size=1, max_size=5))
def test_merging_part_by_part_is_merging_at_once(parts: list[list[Chunk]]) -> None:
    (total,) = as_merged(merge_moments(merged_parts(parts), FIRST))
    assert_moments_of(total, elements([chunk for part in parts for chunk in part]))


@LAW
@given(st.lists(CHUNKS, min_size=2, max_size=5), st.data())
def test_moments_are_merged_each_group_on_its_own(parts: list[list[Chunk]], data: st.DataObject) -> None:
    """To the last bit: what lies beside a group has no part in it."""
    starts = sorted({0, *data.draw(st.sets(st.integers(1, len(parts) - 1)))})
    moments = merged_parts(parts)
    found = merge_moments(moments, np.array(starts, np.int64))
    alone = [merge_moments(moments[a:b], FIRST) for a, b in itertools.pairwise([*starts, len(parts)])]
    np.testing.assert_array_equal(found, np.concatenate(alone))


@LAW
@given(CHUNKS, CHUNKS)
def test_merging_two_has_no_order(left: list[Chunk], right: list[Chunk]) -> None:
    both = merged_parts([left, right])
    np.testing.assert_array_equal(merge_moments(both, FIRST), merge_moments(both[::-1], FIRST))


@LAW
@given(CHUNKS, st.integers(0, 8))
def test_chunk_without_finite_elements_counts_for_nothing(chunks: list[Chunk], place: int) -> None:
    rows = partial_rows(chunks)
    with_empty = np.insert(rows, min(place, len(rows)), 0.0, axis=0)
    assert_moments_of(merge_rows(with_empty), elements(chunks))


def test_nothing_merges_to_nothing() -> None:
    nothing = MergedMoments(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    assert merge_rows(np.zeros((0, 8))) == nothing
    assert merge_rows(np.zeros((3, 8))) == nothing
    assert as_merged(merge_moments(np.zeros((2, 7)), FIRST)) == [nothing]


@pytest.mark.parametrize("turned", [False, True], ids=["before", "behind"])
def test_nothing_adds_nothing(turned: bool) -> None:
    some = merge_groups(partial_row(np.array([0.0, 1.0, 3.0, -4.0]), 0.0)[None], FIRST)
    both = np.concatenate([np.zeros((1, 7)), some])
    np.testing.assert_array_equal(merge_moments(both[::-1] if turned else both, FIRST), some)


def test_records_are_the_fields_in_their_order() -> None:
    (record,) = as_merged(np.array([[4, 0.5, 2, 3, 5, 1.5, 1]]))
    assert record == MergedMoments(n_finite=4, mean=0.5, m2=2.0, m3=3.0, m4=5.0, abs_max=1.5, zeros=1)
    assert (type(record.n_finite), type(record.zeros)) == (int, int)


def test_constant_chunks_have_no_spread() -> None:
    value = float(np.float32(1 / 3))
    merged = merge_rows(partial_rows([(np.full(5, value), value), (np.full(7, value), value)]))
    assert (merged.m2, merged.m3, merged.m4) == (0, 0, 0)
    assert merged.mean == pytest.approx(value, rel=1e-15)


def test_largest_elements_do_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    merged = merge_rows(partial_rows([(np.full(8192, largest), largest), (np.full(8192, -largest), -largest)]))
    assert merged.mean == 0
    assert merged.m4 == pytest.approx(16_384 * largest**4, rel=1e-12)


@LAW
@given(st.lists(st.lists(st.tuples(VALUES, SHIFTS), min_size=1, max_size=4), min_size=1, max_size=4))
def test_row_energies_are_sums_of_squares(matrix: list[list[Chunk]]) -> None:
    """Rows of as many chunks as their tensor is wide, which need not be the same number."""
    chunks = [chunk for row in matrix for chunk in row]
    counts = np.array([len(values) for values, _shift in chunks])
    starts = np.cumsum([0, *(len(row) for row in matrix[:-1])])
    energies = row_energies(partial_rows(chunks), counts, starts)
    assert energies.shape == (len(matrix),)
    for energy, row in zip(energies, matrix, strict=True):
        values = elements(row)
        assert energy >= 0
        limit = 1e-14 * len(values) * (2 * LARGEST) ** 2
        assert abs(energy - math.fsum(values**2)) <= limit


def test_row_with_a_missing_element_has_no_energy() -> None:
    chunks = [(np.array([1.0, 2.0]), 0.5), (np.array([3.0]), 0.0), (np.array([4.0, 5.0]), 4.5), (np.array([6.0]), 0.0)]
    energies = row_energies(partial_rows(chunks), np.array([2, 2, 2, 1]), np.array([0, 2]))
    np.testing.assert_array_equal(energies, [math.nan, 77.0])


def test_energy_of_zeros_does_not_round_below_zero() -> None:
    """Shifts whose squares cancel to some -1e-18."""
    chunks = [(np.zeros(3), number / 7) for number in range(1, 50)]
    energies = row_energies(partial_rows(chunks), np.full(len(chunks), 3), np.arange(len(chunks)))
    assert ((energies >= 0) & (energies < 1e-12)).all()
