"""Every backend over every encoding, length, placement and kind of value."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import INTERPRETING, backends
from kernel_cases import (
    Case,
    code_case,
    codes_moved,
    encode,
    extreme_cases,
    negatives_case,
    normal,
    placement_cases,
    rectangle_cases,
    size_cases,
    tile_cases,
    truth,
    value_cases,
)
from kernel_checks import (
    assert_energies,
    assert_moments,
    check_boxes,
    check_codes_against_their_negatives,
    check_codes_in_lines,
    check_column_energies,
    check_extreme_column_energies,
    check_extreme_moments,
    check_moments,
    check_rectangles,
    check_scattered_chunks,
    check_scattered_tiles,
    check_single_elements,
    energies_of,
    reduced_boxes,
)

from weightprint_kernels.backend import Backend
from weightprint_kernels.compute import reduce
from weightprint_kernels.layout import COLUMN_ENERGY, INT64, ITEMSIZE, NO_ENERGY, ROW_ENERGY, Chunks, Rectangles, Tiles
from weightprint_kernels.merge import as_merged, merge_moments


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    return backends()[request.param]()


def _cases(*makers: object) -> list[object]:
    return [
        pytest.param(case, id=f"{dtype}-{case.name}")
        for dtype in ITEMSIZE
        for maker in makers
        for case in maker(dtype)  # type: ignore[operator]
    ]


@pytest.mark.parametrize("case", _cases(size_cases, placement_cases, value_cases))
def test_moments(backend: Backend, case: Case) -> None:
    check_moments(backend, case)


def _codes(dtype: str) -> list[Case]:
    """Chunks so short that every code counts; the interpreter gets longer ones, and test_triton_decode for that."""
    return [code_case(dtype, columns=1024 if INTERPRETING and ITEMSIZE[dtype] > 1 else 64)]


@pytest.mark.parametrize("case", _cases(extreme_cases, _codes))
def test_moments_beyond_float32(backend: Backend, case: Case) -> None:
    check_extreme_moments(backend, case)


@pytest.mark.parametrize("case", _cases(tile_cases))
def test_column_energies(backend: Backend, case: Case) -> None:
    check_column_energies(backend, case)


@pytest.mark.parametrize("case", _cases(extreme_cases, lambda dtype: [code_case(dtype, columns=128)]))
def test_column_energies_beyond_float32(backend: Backend, case: Case) -> None:
    check_extreme_column_energies(backend, case)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_code_alone(backend: Backend, dtype: str) -> None:
    case = code_case(dtype)
    if backend.name == "triton" and backend.device == "cpu" and ITEMSIZE[dtype] > 1:
        # One interpreted program per element takes minutes; test_triton_decode covers all codes there.
        case = Case(case.name, dtype, case.raw[:: len(case.raw) // 8, : 8 * ITEMSIZE[dtype]])
    check_single_elements(backend, case)


AXES = {"no-energies": NO_ENERGY, "rows": ROW_ENERGY, "columns": COLUMN_ENERGY}


def _few(dtype: str) -> list[Case]:
    """The interpreter takes seconds for every ten rows, and runs of rectangles what it runs of chunks and tiles: it
    gets those of one format, and of the others the shortest."""
    cases = [*rectangle_cases(dtype), *value_cases(dtype), *extreme_cases(dtype)]
    rows = 70 if dtype == "bf16" else 3
    return [case for case in cases if not INTERPRETING or (case.rows <= rows and case.rows * case.columns <= 3500)]


@pytest.mark.parametrize("case", _cases(_few))
def test_rectangles(backend: Backend, case: Case) -> None:
    check_rectangles(backend, case)


@pytest.mark.skipif(INTERPRETING, reason="takes the interpreter minutes; test_triton_decode covers all codes there")
@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_rectangles_of_every_code(backend: Backend, dtype: str) -> None:
    """At an even and at an odd place of a cache line, in either half of it."""
    for by in (0, 1, 48 // ITEMSIZE[dtype] + 1):
        check_codes_in_lines(backend, codes_moved(dtype, by))
    check_codes_against_their_negatives(backend, negatives_case(dtype))


@pytest.mark.parametrize("axis", AXES)
def test_rectangles_may_overlap_and_come_in_any_order(backend: Backend, axis: str) -> None:
    case = Case("overlapping", "bf16", encode(normal((70, 40), 16), "bf16"), gap=2)
    boxes = [(60, 70, 30, 40), (0, 70, 0, 40), (5, 6, 0, 40), (5, 6, 7, 8), (0, 70, 0, 40)]
    check_boxes(backend, case, boxes, [AXES[axis]] * len(boxes))


def test_no_chunk_no_tile_and_no_rectangle(backend: Backend) -> None:
    nothing: INT64 = np.zeros(0, np.int64)
    data = np.zeros(0, np.uint8)
    buffer = backend.place(data)
    assert backend.moments(buffer, Chunks(nothing, nothing), "bf16").shape == (0, 8)
    assert backend.column_energies(buffer, Tiles(*[nothing] * 4), "bf16").shape == (0, 512)
    found = reduce(backend, data, buffer, Rectangles(*[nothing] * 5), "bf16")
    assert (found.moments.shape, found.energies.shape) == ((0, 7), (0,))


LAW = settings(deadline=None, derandomize=True, max_examples=5 if INTERPRETING else 40)
LEADS = st.integers(0, 17)
CHUNKS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2500)), min_size=1, max_size=6)
TILES = st.lists(
    st.tuples(st.integers(0, 19), st.integers(0, 199), st.integers(1, 20), st.integers(1, 500)), min_size=1, max_size=4
)


@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("name", backends())
@LAW
@given(LEADS, CHUNKS)
def test_chunks_of_any_order(name: str, dtype: str, lead: int, pieces: list[tuple[int, int]]) -> None:
    case = Case("scattered", dtype, encode(normal((1, 5500), 12), dtype), lead=lead)
    check_scattered_chunks(backends()[name](), case, pieces)


@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("name", backends())
@LAW
@given(LEADS, LEADS, TILES)
def test_tiles_of_any_order(
    name: str, dtype: str, lead: int, gap: int, pieces: list[tuple[int, int, int, int]]
) -> None:
    case = Case("scattered", dtype, encode(normal((39, 699), 13), dtype), lead=lead, gap=gap)
    check_scattered_tiles(backends()[name](), case, pieces)


CUTS = st.lists(st.integers(1, 199), max_size=3, unique=True).map(sorted)


@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("name", backends())
@LAW
@given(st.sampled_from(sorted(AXES)), LEADS, LEADS, CUTS, CUTS, st.booleans())
def test_cutting_a_matrix_changes_nothing(
    name: str, dtype: str, axis: str, lead: int, gap: int, down: list[int], across: list[int], special: bool
) -> None:
    """Cut into rectangles anywhere and merged: the moments are those of the matrix, and the energies add up."""
    shape = (30, 45) if INTERPRETING else (150, 200)
    values = normal(shape, 17)
    if special:
        values[shape[0] // 2, shape[1] // 3] = np.nan
        values[:, 5] += 50
    case = Case("cut", dtype, encode(values, dtype), lead=lead, gap=gap)
    rows = [0, *(cut for cut in down if cut < case.rows), case.rows]
    columns = [0, *(cut for cut in across if cut < case.columns), case.columns]
    boxes = [(*band, *strip) for band in itertools.pairwise(rows) for strip in itertools.pairwise(columns)]
    found = reduced_boxes(backends()[name](), case, boxes, [AXES[axis]] * len(boxes))
    merged = merge_moments(found.moments, np.zeros(1, np.int64))
    assert_moments(as_merged(merged)[0], truth(case.values()))
    sums = np.zeros({"no-energies": 0, "rows": case.rows, "columns": case.columns}[axis])
    done = 0
    for top, bottom, left, right in boxes:
        first, last = {"no-energies": (0, 0), "rows": (top, bottom), "columns": (left, right)}[axis]
        sums[first:last] += found.energies[done : done + last - first]
        done += last - first
    assert done == len(found.energies)
    assert_energies(sums, energies_of(case.values(), AXES[axis]))
