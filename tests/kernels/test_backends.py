"""Every backend over every encoding, length, placement and kind of value."""

import pytest
from kernel_backends import backends
from kernel_cases import (
    Case,
    code_case,
    extreme_cases,
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


@pytest.mark.parametrize("case", _cases(extreme_cases, lambda dtype: [code_case(dtype)]))
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
        case = Case(case.name, dtype, case.raw[:: len(case.raw) // 8])
    check_single_elements(backend, case)


def test_no_chunk_and_no_tile(backend: Backend) -> None:
    import numpy as np

    from weightprint_kernels.layout import join_chunks, join_tiles

    buffer = backend.place(np.zeros(0, np.uint8))
    assert backend.moments(buffer, join_chunks([]), "bf16").shape == (0, 8)
    assert backend.column_energies(buffer, join_tiles([]), "bf16").shape == (0, 512)
