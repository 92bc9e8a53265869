"""The reference itself: every code against other people's conversions, and one reference for each kernel."""

import ast
import inspect
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import TORCH_DTYPES, code_case

import weightprint_kernels
from weightprint_kernels import reference
from weightprint_kernels.backend import Backend
from weightprint_kernels.layout import FLOAT64, ITEMSIZE, UINT8

PACKAGE = Path(weightprint_kernels.__path__[0])
F32_SPECIAL = (0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF)


def sampled_f32() -> UINT8:
    """Special codes of both signs, and some of every exponent."""
    codes = np.concatenate([np.array(F32_SPECIAL, "<u4"), code_case("f32").raw.reshape(-1).view("<u4")])
    return np.concatenate([codes, codes | np.uint32(0x80000000)]).astype("<u4").view(np.uint8)


def codes_of(dtype: str) -> UINT8:
    return sampled_f32() if dtype == "f32" else code_case(dtype).raw.reshape(-1)


def assert_same(values: FLOAT64, expected: FLOAT64) -> None:
    """Equal, NaN where NaN, and zeros of the same sign."""
    np.testing.assert_array_equal(values, expected)
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values[there]), np.signbit(expected[there]))


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_codes_as_torch_converts_them(dtype: str) -> None:
    raw = codes_of(dtype)
    expected = torch.from_numpy(raw.copy()).view(TORCH_DTYPES[dtype]).double().numpy()
    assert_same(reference.decode(raw, dtype), expected)


def test_f32_codes_as_struct_reads_them() -> None:
    raw = codes_of("f32")
    assert_same(reference.decode(raw, "f32"), np.array(struct.unpack(f"<{raw.size // 4}f", raw.tobytes())))


def test_f16_codes_as_struct_reads_them() -> None:
    raw = codes_of("f16")
    assert_same(reference.decode(raw, "f16"), np.array(struct.unpack(f"<{raw.size // 2}e", raw.tobytes())))


def test_bf16_codes_are_upper_halves_of_f32() -> None:
    raw = codes_of("bf16")
    wide = b"".join(b"\0\0" + raw[place : place + 2].tobytes() for place in range(0, raw.size, 2))
    assert_same(reference.decode(raw, "bf16"), np.array(struct.unpack(f"<{raw.size // 2}f", wide)))


def test_f8_e5m2_codes_are_upper_bytes_of_f16() -> None:
    raw = codes_of("f8_e5m2")
    wide = b"".join(bytes([0, code]) for code in raw.tolist())
    assert_same(reference.decode(raw, "f8_e5m2"), np.array(struct.unpack(f"<{raw.size}e", wide)))


@pytest.mark.parametrize(
    ("code", "value"),
    [(0x00, 0.0), (0x01, 2**-9), (0x07, 7 * 2**-9), (0x08, 2**-6), (0x38, 1.0), (0x7E, 448.0), (0x7F, float("nan"))],
)
def test_f8_e4m3_codes_of_the_ocp_table(code: int, value: float) -> None:
    decoded = reference.decode(np.array([code, code | 0x80], np.uint8), "f8_e4m3")
    assert_same(decoded, np.array([value, -value]))


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_unaligned_bytes_decode_alike(dtype: str) -> None:
    raw = codes_of(dtype)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw])[1:]
    assert_same(reference.decode(shifted, dtype), reference.decode(raw, dtype))


def kernels() -> dict[str, str]:
    """Name without its ending -> the Triton kernels that the launcher launches, by reading its source."""
    tree = ast.parse((PACKAGE / "triton_backend.py").read_text())
    launches = [call.func for call in ast.walk(tree) if isinstance(call, ast.Call)]
    names = [
        launch.value.id
        for launch in launches
        if isinstance(launch, ast.Subscript) and isinstance(launch.value, ast.Name)
    ]
    return {name.removesuffix("_kernel"): name for name in names}


def jitted() -> list[str]:
    """Functions of triton_kernels.py, without importing triton."""
    tree = ast.parse((PACKAGE / "triton_kernels.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def backend_methods() -> list[str]:
    return [name for name in vars(Backend) if not name.startswith("_") and callable(vars(Backend)[name])]


def test_every_kernel_has_its_reference() -> None:
    """A kernel called x_kernel, the backends' method x and the reference x_float64 belong together."""
    names = set(kernels())
    assert names, "no kernel was found"
    assert {f"{name}_kernel" for name in names} == {name for name in jitted() if name.endswith("_kernel")}
    assert names == set(backend_methods()) - {"place"}
    missing = [name for name in sorted(names) if not callable(getattr(reference, f"{name}_float64", None))]
    assert not missing, f"no float64 reference for {missing}"


@pytest.mark.parametrize("name", sorted(kernels()))
def test_reference_takes_what_the_backends_take(name: str) -> None:
    of_reference = list(inspect.signature(getattr(reference, f"{name}_float64")).parameters)
    of_backend = list(inspect.signature(getattr(Backend, name)).parameters)
    # The reference takes the host's bytes where a backend takes what it placed.
    assert of_reference == ["data", *of_backend[2:]]
    assert len(inspect.getsource(getattr(reference, f"{name}_float64")).splitlines()) <= 60


def test_reference_shares_no_helper() -> None:
    tree = ast.parse((PACKAGE / "reference.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name for name in names if name and name.startswith("weightprint")} == {"weightprint_kernels.layout"}
    assert not names & {"torch", "triton"}
