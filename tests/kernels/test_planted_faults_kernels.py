# ruff: noqa: E501 - one fault a line reads as a table
"""The suite can fail: each line of FAULTS breaks one line of one module, and the named check must turn red.

A fault whose text is no longer in the module fails as well. Faults of Triton's modules run where it interprets. What
Numba compiles of a broken module is kept nowhere; it checks no bounds, so no fault there may write beyond its arrays.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import kernel_checks
import pytest
from kernel_backends import INTERPRETING, backends
from kernel_cases import (
    Case,
    code_case,
    codes_moved,
    extreme_cases,
    negatives_case,
    placement_cases,
    rectangle_cases,
    size_cases,
    tile_cases,
    value_cases,
)

import weightprint_kernels
from weightprint_kernels import compute
from weightprint_kernels.backend import Backend


@dataclass(frozen=True)
class Fault:
    """``old`` replaced by ``new`` in ``module``; shown by ``check`` on the case of that name and dtype."""

    label: str
    module: str
    old: str
    new: str
    check: str
    cases: Callable[[str], list[Case]]
    case: str
    dtype: str = "bf16"


def codes(dtype: str) -> list[Case]:
    return [code_case(dtype), codes_moved(dtype, 1), negatives_case(dtype)]


MOMENTS, EXTREME = "check_moments", "check_extreme_moments"
COLUMNS, EXTREME_COLUMNS = "check_column_energies", "check_extreme_column_energies"
SINGLE, RECTANGLES = "check_single_elements", "check_rectangles"
LINES, NEGATIVES = "check_codes_in_lines", "check_codes_against_their_negatives"
KERNELS, LAUNCH, TORCH, REFERENCE = "triton_kernels", "triton_backend", "torch_backend", "reference"
COMPUTE, MERGE, LAYOUT = "compute", "merge", "layout"
NUMBA, LOOPS, LINE_SUMS = "numba_backend", "numba_kernels", "line_sums"

TRITON_FAULTS = [
    Fault("tail-dropped", KERNELS, "element < count,", "element < count - 1,", MOMENTS, size_cases, "size-1023"),
    Fault("read-too-far", KERNELS, "element < count,", "element < count + 1,", MOMENTS, size_cases, "size-1023"),
    Fault("shift-sign", KERNELS, '"nan")) - shift', '"nan")) + shift', MOMENTS, value_cases, "mean-100"),
    Fault("no-shift", KERNELS, '"nan")) - shift', '"nan"))', MOMENTS, value_cases, "mean-100"),
    Fault("nan-leaks", KERNELS, "tl.where(deviation == deviation, deviation, 0.0)", "deviation", MOMENTS, value_cases, "one-nan"),
    Fault("field-unwritten", KERNELS, "tl.store(row + 7,", "tl.store(row + 6,", MOMENTS, size_cases, "size-33"),
    Fault("bytes-swapped", KERNELS, "<< (8 * byte))", "<< (4 * byte))", MOMENTS, placement_cases, "lead-1"),
    Fault("sign-lost", KERNELS, " | (codes & -2147483648)", "", MOMENTS, size_cases, "size-33"),
    Fault("shifted-a-bit", KERNELS, "(23 - MANTISSA)", "(22 - MANTISSA)", MOMENTS, size_cases, "size-33"),
    Fault("scale", KERNELS, "2.0 ** (128 -", "2.0 ** (127 -", MOMENTS, size_cases, "size-33", "f8_e4m3"),
    Fault("nan-is-a-number", KERNELS, "magnitude < special", "magnitude <= special", MOMENTS, value_cases, "all-nan", "f8_e4m3"),
    Fault("infinity-is-a-number", KERNELS, "if INFINITIES else", "if False else", MOMENTS, value_cases, "infinities", "f16"),
    Fault("minus-zero", KERNELS, "magnitude == 0", "codes == 0", MOMENTS, value_cases, "minus-zeros"),
    Fault("abs-max", KERNELS, "tl.maximum(high, -low)", "high", MOMENTS, value_cases, "mean-minus-1"),
    Fault("column-beside", KERNELS, "* COLUMNS + tl.arange", "* COLUMNS + 1 + tl.arange", COLUMNS, tile_cases, "33x512"),
    Fault("last-row-dropped", KERNELS, "row < height - top)", "row < height - top - 1)", COLUMNS, tile_cases, "33x512"),
    Fault("row-too-many", KERNELS, "row < height - top)", "row < height - top + 1)", COLUMNS, tile_cases, "33x512"),
    Fault("column-too-many", KERNELS, "(column < width)", "(column <= width)", COLUMNS, tile_cases, "31x129"),
    Fault("column-nan-lost", KERNELS, 'value * value, float("nan"))', "value * value, 0.0)", COLUMNS, tile_cases, "special"),
    Fault("band-overwritten", KERNELS, "energies += ", "energies = ", COLUMNS, tile_cases, "33x512"),
    Fault("alignment", LAUNCH, "together % access == 0", "together % access >= 0", MOMENTS, placement_cases, "lead-1"),
    Fault("rows-mixed-up", LAUNCH, "chunks.count[chosen], chosen]", "chunks.count[chosen], chosen // 2]", MOMENTS, placement_cases, "two-chunks-a-row"),
    Fault("block-too-small", LAUNCH, "np.array(BLOCKS)[", "np.array((1024, 1024, 1024, 1024))[", MOMENTS, size_cases, "size-1025"),
    Fault("tiles-mixed-up", LAUNCH, "tiles.columns[chosen], chosen]", "tiles.columns[chosen], chosen * 0]", COLUMNS, tile_cases, "520x24"),
]  # fmt: skip

FAULTS = [
    Fault("tail-dropped", TORCH, "(len(index), run.count)", "(len(index), run.count - 1)", MOMENTS, size_cases, "size-1023"),
    Fault("read-too-far", TORCH, "(len(index), run.count)", "(len(index), run.count + 1)", MOMENTS, size_cases, "size-1023"),
    Fault("shift-sign", TORCH, "values.sub_(shift", "values.add_(shift", MOMENTS, value_cases, "mean-100"),
    Fault("nan-leaks", TORCH, "centred.masked_fill_(~mask, 0.0)", "pass", MOMENTS, value_cases, "one-nan"),
    Fault("shift-not-held", TORCH, "torch.clamp(total / finite.clamp(min=1), low, high)", "total / finite.clamp(min=1)", MOMENTS, value_cases, "constants", "f32"),
    Fault("field-unwritten", TORCH, "rows[torch.from_numpy(index)] =", "rows[torch.from_numpy(index)][:] =", MOMENTS, size_cases, "size-33"),
    Fault("abs-max", TORCH, "torch.maximum(high, -low)", "high", MOMENTS, value_cases, "mean-minus-1"),
    Fault("zeros", TORCH, "torch.ne(values, 0,", "torch.gt(values, 0,", MOMENTS, value_cases, "sparse"),
    Fault("stride", TORCH, "int(steps[start])", "int(steps[start]) + 2", MOMENTS, placement_cases, "gap-2"),
    Fault("alignment", TORCH, "offset % itemsize or stride % itemsize", "False", MOMENTS, placement_cases, "lead-1"),
    Fault("halves-shifted", TORCH, "bitwise_left_shift_(8)", "bitwise_left_shift_(7)", NEGATIVES, codes, "negatives", "f8_e5m2"),
    Fault("sign-lost", TORCH, "-0x78100000", "0x07F00000", SINGLE, codes, "all-codes", "f8_e4m3"),
    Fault("nan-is-a-number", TORCH, "-values.amin())) > 448", "-values.amin())) > 480", SINGLE, codes, "all-codes", "f8_e4m3"),
    Fault("column-beside", TORCH, "sums[number, :columns]", "sums[number, 1 : columns + 1]", COLUMNS, tile_cases, "256x80"),
    Fault("tile-stride", TORCH, "offset, shape, stride, dtype), dtype", "offset, shape, columns, dtype), dtype", COLUMNS, tile_cases, "gap-16"),
    Fault("subnormals", REFERENCE, "fraction + (exponent > 0)", "fraction + 1", LINES, codes, "codes-moved-1", "f16"),
    Fault("bias", REFERENCE, "(format.exponent_bits - 1) - 1", "(format.exponent_bits - 1)", SINGLE, codes, "all-codes", "bf16"),
    Fault("infinities", REFERENCE, "if format.infinities:", "if True:", SINGLE, codes, "all-codes", "f8_e4m3"),
    Fault("sign-lost", REFERENCE, "-magnitude, magnitude", "magnitude, magnitude", SINGLE, codes, "all-codes", "f8_e5m2"),
    Fault("shift-sign", REFERENCE, "finite - shift", "finite + shift", MOMENTS, value_cases, "mean-100"),
    Fault("tile-stride", REFERENCE, "(stride, 1)", "(width, 1)", COLUMNS, tile_cases, "gap-16"),
    Fault("zeros", REFERENCE, "(finite == 0).sum()", "(finite > 0).sum()", MOMENTS, value_cases, "sparse"),
    Fault("nan-leaks", REFERENCE, "values[np.isfinite(values)]", "values", MOMENTS, value_cases, "one-nan"),
    Fault("overflow-trusted", COMPUTE, "= finite & (spread_out", "= (spread_out", EXTREME, extreme_cases, "1e10"),
    Fault("underflow-trusted", COMPUTE, "SMALLEST_VARIANCE = 1e-17", "SMALLEST_VARIANCE = 0", EXTREME, extreme_cases, "1e-12"),
    Fault("tiny-constant-trusted", COMPUTE, "zero = rows[:, ABS_MAX] == 0", "zero = rows[:, S2] == 0", EXTREME, extreme_cases, "1e-25"),
    Fault("columns-trusted", COMPUTE, "(sums > SMALLEST_ENERGY)", "(sums >= 0)", EXTREME_COLUMNS, extreme_cases, "1e-22"),
    Fault("overflow-is-nan", COMPUTE, "(trusted | ~inside).all(axis=1)", "(trusted | True).all(axis=1)", EXTREME_COLUMNS, extreme_cases, "largest"),
    Fault("third-moment", MERGE, "m3 + 3 * e * m2", "m3 + 2 * e * m2", MOMENTS, size_cases, "size-65537"),
    Fault("fourth-moment", MERGE, "6 * e**2 * m2", "e**2 * m2", MOMENTS, value_cases, "mean-100"),
    Fault("row-energy", MERGE, "rows[:, N_FINITE] * shift**2", "shift**2", MOMENTS, value_cases, "mean-100"),
    Fault("row-nan", MERGE, "rows[:, N_FINITE] < counts", "rows[:, N_FINITE] < 0", MOMENTS, value_cases, "one-nan"),
    Fault("abs-max", MERGE, "np.maximum.reduceat(largest, starts)", "np.minimum.reduceat(largest, starts)", RECTANGLES, rectangle_cases, "65x63"),
    Fault("last-chunk-short", LAYOUT, "columns[owner] - start, CHUNK_ELEMENTS)", "columns[owner] - start - 1, CHUNK_ELEMENTS)", MOMENTS, size_cases, "size-33"),
    Fault("chunk-offset", LAYOUT, "start * itemsize,", "start,", MOMENTS, size_cases, "size-8193"),
    Fault("row-stride", LAYOUT, "row * rectangles.stride[owner]", "row * rectangles.columns[owner] * itemsize", MOMENTS, placement_cases, "gap-16"),
    Fault("tile-band", LAYOUT, "+ top * stride", "+ top * itemsize", COLUMNS, tile_cases, "257x513"),
    Fault("tile-offset", LAYOUT, "left * itemsize,", "left,", COLUMNS, tile_cases, "257x513"),
    Fault("rows-of-all", COMPUTE, "row_energies(rows[every], counts[every], first)", "row_energies(rows, counts, first)", RECTANGLES, rectangle_cases, "63x33"),
    Fault("energies-not-in-turn", COMPUTE, "place = begins[owner] + within", "place = begins[0] + within", RECTANGLES, rectangle_cases, "63x33"),
    Fault("tiles-of-all", COMPUTE, "done += bands * across", "done += 0", RECTANGLES, rectangle_cases, "63x33"),
    Fault("one-band", COMPUTE, "across * TILE_COLUMNS).sum(axis=0)", "across * TILE_COLUMNS)[0]", RECTANGLES, rectangle_cases, "257x39"),
    Fault("energies-turned", NUMBA, "return Reduced(moments, energies)", "return Reduced(moments, energies[::-1])", RECTANGLES, rectangle_cases, "129x3"),
    Fault("infinity-is-a-number", NUMBA, "infinity if format.infinities else largest", "largest", MOMENTS, value_cases, "infinities"),
    Fault("sign-in-the-magnitude", NUMBA, "(1 << (format.bits - 1)) - 1", "(1 << format.bits) - 1", MOMENTS, value_cases, "one-nan"),
    Fault("not-shifted", LOOPS, "2 * s1 * s1 <= s2 * count", "True", MOMENTS, value_cases, "mean-100"),
    Fault("overflow-trusted", LOOPS, "largest >= form.special or not np.isfinite(s4)", "largest >= form.special", RECTANGLES, extreme_cases, "1e10"),
    Fault("too-long-in-float32", LINE_SUMS, "ADDITIONS = 12", "ADDITIONS = 2**20", RECTANGLES, value_cases, "constants"),
    Fault("rest-of-before", LOOPS, "pad[rest:] = 0", "pass", RECTANGLES, rectangle_cases, "65x63"),
    Fault("shift-sign", LOOPS, "d = value - shift", "d = value + shift", MOMENTS, value_cases, "mean-100-nan"),
    Fault("rest-about-zero", LOOPS, "else -value) - shift", "else -value)", MOMENTS, value_cases, "mean-100"),
    Fault("third-moment", LOOPS, "m3 + product * e * (rest - share)", "m3 - product * e * (rest - share)", RECTANGLES, rectangle_cases, "band-far"),
    Fault("nan-has-energy", LOOPS, "if finite == count else np.nan", "if finite <= count else np.nan", RECTANGLES, rectangle_cases, "band-nan"),
    Fault("bands-overwritten", LOOPS, "total[place] += squares[place] * scale", "total[place] = squares[place] * scale", COLUMNS, tile_cases, "257x513"),
    Fault("band-not-cleared", LOOPS, "squares[:end] = 0", "pass", COLUMNS, tile_cases, "257x513"),
    Fault("last-band-dropped", LOOPS, "height = min(FLUSH_ROWS, rows - top)", "height = min(FLUSH_ROWS, rows - top) if top == 0 else 0", RECTANGLES, rectangle_cases, "65x63"),
    Fault("columns-trusted", LOOPS, "SMALLEST_ENERGY = 1e-30", "SMALLEST_ENERGY = -1.0", RECTANGLES, rectangle_cases, "band-tiny"),
    Fault("order-of-lines", LOOPS, "energies[column] = total[place]", "energies[column] = total[column]", COLUMNS, tile_cases, "33x512"),
    Fault("minus-zero", LOOPS, "& np.uint16(0x7FFF)", "& np.uint16(0xFFFF)", MOMENTS, value_cases, "minus-zeros"),
    Fault("halves-swapped", LINE_SUMS, "((0, 2), (1, 2))),", "((1, 2), (0, 2))),", COLUMNS, tile_cases, "33x512"),
    Fault("upper-half-not-masked", LINE_SUMS, "0xFFFF0000", "0xFFFFFF00", MOMENTS, size_cases, "size-33"),
    Fault("sign-lost", LINE_SUMS, "_splat(16, 0x8000, 2 * LANES)", "_splat(16, 0, 2 * LANES)", MOMENTS, value_cases, "heavy-tails", "f8_e4m3"),
    Fault("largest-lost", LINE_SUMS, "builder.store(_larger(builder)(builder.load(largest), magnitudes), largest)", "pass", MOMENTS, size_cases, "size-33"),
    Fault("fourth-power", LINE_SUMS, "_multiply_add(builder, square, square, builder.load(s4))", "_multiply_add(builder, square, value, builder.load(s4))", MOMENTS, size_cases, "size-33"),
    Fault("last-block-alone", LINE_SUMS, "builder.fadd(builder.load(total), builder.fpext(together, DOUBLES))", "builder.fpext(together, DOUBLES)", MOMENTS, size_cases, "size-8193"),
    Fault("second-chain-lost", LINE_SUMS, "[builder.load(sum) for sum in own]", "[builder.load(sum) for sum in own[:1]]", MOMENTS, size_cases, "size-33"),
    Fault("first-row-twice", LINE_SUMS, "added = functools.reduce(builder.fadd, own)", "added = own[0]", RECTANGLES, rectangle_cases, "2x32"),
]  # fmt: skip


SHOWN_ON = {REFERENCE: "reference", NUMBA: "numba", LOOPS: "numba", LINE_SUMS: "numba"}


@pytest.mark.parametrize(
    "fault",
    TRITON_FAULTS if INTERPRETING else FAULTS,
    ids=lambda fault: f"{fault.module}-{fault.label}",
)
def test_fault_turns_a_check_red(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = getattr(kernel_checks, fault.check)
    (case,) = [case for case in fault.cases(fault.dtype) if case.name == fault.case]
    make = backends()["triton-interpreter" if INTERPRETING else SHOWN_ON.get(fault.module, "torch-cpu")]
    check(make(), case)
    broken = plant(fault, tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        check(broken or make(), case)


def test_every_module_that_computes_has_faults() -> None:
    modules = {path.stem for path in Path(weightprint_kernels.__path__[0]).glob("*.py")}
    # These only name, choose and keep; tests of their own cover them.
    assert {fault.module for fault in (*FAULTS, *TRITON_FAULTS)} == modules - {
        "__init__",
        "backend",
        "compiled",
        "driver",
        "select",
    }


def plant(fault: Fault, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Backend | None:
    """Put the broken module's names where the suite and the launcher use them; its own backend, if it has one."""
    original = importlib.import_module(f"weightprint_kernels.{fault.module}")
    assert original.__file__ is not None
    source = Path(original.__file__).read_text()
    assert fault.old in source, f"{fault.module} no longer holds {fault.old!r}: move the fault"
    changed = source.replace(fault.old, fault.new)
    if SHOWN_ON.get(fault.module) == "numba":
        return numba_with(fault.module, changed, folder, monkeypatch)
    broken = load(changed, folder / f"broken_{fault.module}.py", monkeypatch)
    users: list[ModuleType] = [kernel_checks, compute]
    if INTERPRETING:
        users.append(importlib.import_module("weightprint_kernels.triton_backend"))
    for user in users:
        for name, value in vars(original).items():
            if vars(user).get(name) is value and vars(broken).get(name, value) is not value:
                monkeypatch.setattr(user, name, getattr(broken, name))
    for name in ("ReferenceBackend", "TorchBackend", "TritonBackend"):
        backend = vars(broken).get(name)
        if backend is not None and backend.__module__ == broken.__name__:
            built: Backend = backend("cpu") if name == "TritonBackend" else backend()
            return built
    return None


def numba_with(broken: str, changed: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend of its own copies of the three modules, one of them broken; the others import it by its name."""
    module = None
    for name in (LINE_SUMS, LOOPS, NUMBA):
        original = importlib.import_module(f"weightprint_kernels.{name}")
        assert original.__file__ is not None
        source = changed if name == broken else Path(original.__file__).read_text()
        uncached = source.replace("loop = compiled(", "loop = __import__('numba').njit(nogil=True, ")
        assert (uncached != source) == (name == LOOPS), "what is compiled of a broken module would be kept"
        module = load(uncached, folder / f"broken_{name}.py", monkeypatch)
        monkeypatch.setitem(sys.modules, f"weightprint_kernels.{name}", module)
        monkeypatch.setattr(weightprint_kernels, name, module)
    backend: Backend = vars(module)["NumbaBackend"]()
    return backend


def load(source: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path.write_text(source)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, path.stem, module)
    specification.loader.exec_module(module)
    return module
