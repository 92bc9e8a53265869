"""The kernels as machine code of three GPU generations, compiled without a GPU: no spills, wide loads, no atomics.

The largest block for every format, access and generation; the smaller ones, whose code differs in little but the number
of warps, for one generation, and their instructions are read only where loads are wide: all would take a minute.
"""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kernel_backends import INTERPRETING, TRITON

if INTERPRETING or not TRITON:
    pytest.skip("needs triton in a process that does not interpret", allow_module_level=True)

import triton
import triton.language as tl
from sass import MachineCode, compile_kernel, read_code
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from weightprint_kernels.layout import ITEMSIZE, Chunks, chunk_rectangles, rectangle, tile_rectangles
from weightprint_kernels.triton_backend import (
    BLOCKS,
    WIDE,
    TritonBackend,
    accesses,
    column_energies_variant,
    moments_variant,
)
from weightprint_kernels.triton_kernels import column_energies_kernel, moments_kernel

SMALLER_BLOCKS_ON = 90
CAPABILITIES = (80, SMALLER_BLOCKS_ON, 100)
REGISTERS = 64
"""65,536 registers an SM; the largest narrow block runs 1,024 threads."""
MOMENTS_TABLE, COLUMNS_TABLE = 3, 5
"""Entries of the work table, each a load of its own."""

VARIANTS = [(dtype, access) for dtype in ITEMSIZE for access in accesses(dtype)]
each_variant = pytest.mark.parametrize(("dtype", "access"), VARIANTS, ids=[f"{d}-access{a}" for d, a in VARIANTS])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile afresh, and leave nothing in the user's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm{}".format)
@each_variant
def test_moments(dtype: str, access: int, capability: int) -> None:
    code = _compile(moments_kernel, dtype, access, moments_variant(dtype, access, BLOCKS[-1]), capability)
    _assert_figures(code)
    _assert_instructions(code, dtype, access, MOMENTS_TABLE)


@pytest.mark.parametrize("block", BLOCKS[:-1], ids="block{}".format)
@each_variant
def test_moments_of_smaller_blocks(dtype: str, access: int, block: int) -> None:
    code = _compile(moments_kernel, dtype, access, moments_variant(dtype, access, block), SMALLER_BLOCKS_ON)
    _assert_figures(code)
    if access == WIDE:
        _assert_instructions(code, dtype, access, MOMENTS_TABLE)


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm{}".format)
@each_variant
def test_column_energies(dtype: str, access: int, capability: int) -> None:
    code = _compile(column_energies_kernel, dtype, access, column_energies_variant(dtype, access), capability)
    _assert_figures(code)
    _assert_instructions(code, dtype, access, COLUMNS_TABLE)


def _compile(kernel: Any, dtype: str, access: int, variant: dict[str, Any], capability: int) -> MachineCode:
    element = f"i{8 * (1 if access == 1 else ITEMSIZE[dtype])}"
    warps = variant.pop("num_warps")
    return compile_kernel(kernel, element, variant, warps, capability)


def _assert_figures(code: MachineCode) -> None:
    assert (code.stack, code.local) == (0, 0), f"spills: {_figures(code)}"
    assert code.registers <= REGISTERS, _figures(code)


def _assert_instructions(code: MachineCode, dtype: str, access: int, table: int) -> None:
    figures = _figures(code)
    assert {"EXIT", "STG.E"} <= set(code.instructions), f"not a whole kernel: {figures}"
    assert not code.atomics, f"{code.atomics}: {figures}"
    assert not code.flushing, f"subnormals are lost in {code.flushing}: {figures}"
    data = len(code.loads) - table
    if access == WIDE:
        # 16 elements a thread, all of them in loads of 16 bytes.
        assert code.wide_loads == data == ITEMSIZE[dtype], figures
    else:
        # 8 elements a thread, or 4 of a tile, each in one load or in one a byte.
        assert code.wide_loads == 0, figures
        assert data * access == (8 if table == MOMENTS_TABLE else 4) * ITEMSIZE[dtype], figures


def _figures(code: MachineCode) -> str:
    return f"REG {code.registers} STACK {code.stack} LOCAL {code.local} loads {dict(Counter(code.loads))}"


@triton.jit
def _atomic_kernel(buffer, table, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    values = tl.load(buffer + tl.load(table) + tl.arange(0, BLOCK))
    tl.atomic_add(out, tl.sum(values.to(tl.float32)))


def test_atomics_would_show() -> None:
    code = compile_kernel(_atomic_kernel, "i16", {"BLOCK": 1024}, warps=2, capability=90)
    assert len(code.atomics) == 1, code.instructions


def test_spills_would_show() -> None:
    """128 elements a thread are more than there are registers."""
    constants = moments_variant("f32", WIDE, BLOCKS[-1])
    del constants["num_warps"]
    code = compile_kernel(moments_kernel, "i32", constants, warps=2, capability=90)
    assert code.registers > REGISTERS and code.stack > 0, _figures(code)


class RecordingDriver:
    """Stands where triton's CUDA driver does: compiles for one GPU and records launches instead of running them."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, ...], int, list[Any]]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda _device: {"max_shared_mem": 48 * 1024},
            load_binary=lambda *_arguments: (None, None, 0, 0, 1024),
        )

    def launcher_cls(self, _source: object, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            tensors = [argument for argument in arguments if hasattr(argument, "data_ptr")]
            self.launches.append((metadata.name, arguments[:3], metadata.num_warps, tensors))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", SMALLER_BLOCKS_ON, 32)

    def get_current_device(self) -> object:
        """A key of triton's table of compiled kernels that no real device has."""
        return self

    def get_current_stream(self, _device: object) -> int:
        return 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    recording = RecordingDriver()
    monkeypatch.setattr(driver, "_active", recording)
    return recording


def _binaries(kernel: Any, recorder: RecordingDriver) -> list[MachineCode]:
    compiled = kernel.device_caches[recorder][0].values()
    return [read_code(one.asm["cubin"]) for one in compiled]


def test_launches_of_moments(recorder: RecordingDriver) -> None:
    """One launch a block size, with the warps of its variant; triton makes wide loads of what the launcher hands it."""
    backend = TritonBackend("cpu")
    data = np.zeros(4 * 9000 * 2, np.uint8)
    backend.moments(backend.place(data), chunk_rectangles(rectangle(0, 4, 9000, 18_000), 2), "bf16")
    shapes = [(name, grid, warps) for name, grid, warps, _tensors in recorder.launches]
    assert shapes == [("moments_kernel", (4, 1, 1), 2), ("moments_kernel", (4, 1, 1), 16)]
    for _name, _grid, _warps, (buffer, table, rows) in recorder.launches:
        assert (buffer.element_size(), table.element_size(), rows.element_size()) == (2, 8, 4)
        assert table.shape == (4, 3) and rows.shape == (8, 8)
    for code in _binaries(moments_kernel, recorder):
        _assert_instructions(code, "bf16", WIDE, MOMENTS_TABLE)


def test_launches_of_column_energies(recorder: RecordingDriver) -> None:
    backend = TritonBackend("cpu")
    data = np.zeros(300 * 640, np.uint8)
    backend.column_energies(backend.place(data), tile_rectangles(rectangle(0, 300, 640, 640), 1), "f8_e4m3")
    ((name, grid, warps, (buffer, table, sums)),) = recorder.launches
    assert (name, grid, warps) == ("column_energies_kernel", (4, 4, 1), 8)
    assert buffer.element_size() == 1 and table.shape == (4, 5) and sums.shape == (4, 512)
    (code,) = _binaries(column_energies_kernel, recorder)
    _assert_instructions(code, "f8_e4m3", WIDE, COLUMNS_TABLE)


def test_offsets_beyond_32_bits_reach_the_kernel(recorder: RecordingDriver) -> None:
    backend = TritonBackend("cpu")
    far = 3 * 2**40
    backend.moments(backend.place(np.zeros(16, np.uint8)), Chunks(np.array([far]), np.array([8])), "bf16")
    ((_name, _grid, _warps, (_buffer, table, _rows)),) = recorder.launches
    assert table.tolist() == [[far // 2, 8, 0]]
