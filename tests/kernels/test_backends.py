"""Every backend over every encoding, length, placement and kind of value."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import INTERPRETING, backends
from kernel_cases import (
    Case,
    code_case,
    encode,
    extreme_cases,
    normal,
    placement_cases,
    size_cases,
    tile_cases,
    value_cases,
)
from kernel_checks import (
    check_column_energies,
    check_extreme_column_energies,
    check_extreme_moments,
    check_moments,
    check_scattered_chunks,
    check_scattered_tiles,
    check_single_elements,
)

from weightprint_kernels.backend import Backend
from weightprint_kernels.layout import ITEMSIZE


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


def test_no_chunk_and_no_tile(backend: Backend) -> None:
    import numpy as np

    from weightprint_kernels.layout import join_chunks, join_tiles

    buffer = backend.place(np.zeros(0, np.uint8))
    assert backend.moments(buffer, join_chunks([]), "bf16").shape == (0, 8)
    assert backend.column_energies(buffer, join_tiles([]), "bf16").shape == (0, 512)


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
