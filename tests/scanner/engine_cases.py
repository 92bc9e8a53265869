"""Matrices laid out in files in every way that checkpoints have, and what they hold in float64."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import Case, encode, normal
from kernel_cases import truth as truth_of
from kernel_checks import assert_moments

import tolerances
from weightprint.data import Matrix, Part, TensorSpec
from weightprint.engine import files as engine_files
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import reduce_plan
from weightprint.plan import UNITS_ARE_OUTPUTS, Plan, plan_reads
from weightprint_kernels.layout import ITEMSIZE
from weightprint_kernels.reference import ReferenceBackend

FLOAT64 = npt.NDArray[np.float64]
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Laid:
    """A matrix in a file, and its values as W (out, in)."""

    matrix: Matrix
    values: FLOAT64


class Files:
    """Files under construction: tensors one after the other, with bytes of no meaning in between."""

    def __init__(self, folder: Path, dtype: str, lead: int = 0) -> None:
        self.folder, self.dtype, self.lead = folder, dtype, lead
        self.contents: dict[str, bytearray] = {}
        self.seed = 0

    def add(
        self, stored: FLOAT64, file: str = "a", gap: int = 0, column_major: bool = False
    ) -> tuple[TensorSpec, FLOAT64]:
        """Append an array as its bytes lie; a column-major tensor's shape is the transpose. Gives it as rounded."""
        content = self.contents.setdefault(file, bytearray(b"\xff" * self.lead))
        content += b"\xff" * gap
        raw = encode(stored, self.dtype)
        shape = stored.shape[::-1] if column_major else stored.shape
        name = f"{file}{len(content)}"
        spec = TensorSpec(name, shape, self.dtype, self.folder / file, len(content), raw.size, column_major)
        content += raw.tobytes()
        return spec, Case(name, self.dtype, raw).values()

    def random(self, rows: int, columns: int) -> FLOAT64:
        self.seed += 1
        return normal((rows, columns), self.seed, mean=0.3, spread=0.5)

    def write(self) -> None:
        for file, content in self.contents.items():
            (self.folder / file).write_bytes(content + b"\xff" * 64)


def matrix(role: str, values: FLOAT64, parts: Sequence[tuple[TensorSpec, Ranges]], transposed: bool = False) -> Laid:
    shape = (values.shape[0], values.shape[1])
    made = tuple(Part(spec, (spec.shape[0], spec.shape[1]), ranges) for spec, ranges in parts)
    return Laid(Matrix("stack", 0, role, shape, made, transposed), values)


def row_major(files: Files) -> list[Laid]:
    laid = []
    for role, shape in zip("qkvo", ((24, 10), (8, 10), (8, 10), (10, 24)), strict=True):
        spec, values = files.add(files.random(*shape))
        laid.append(matrix(role, values, [(spec, ((0, shape[0]),))]))
    return laid


def stored_in_out(files: Files) -> list[Laid]:
    laid = []
    for role in "qkvo":
        spec, values = files.add(files.random(10, 24))
        laid.append(matrix(role, values.T, [(spec, ((0, 24),))], transposed=True))
    return laid


def column_major(files: Files) -> list[Laid]:
    laid = []
    for role in "vo":
        spec, values = files.add(files.random(10, 24), column_major=True)
        laid.append(matrix(role, values.T, [(spec, ((0, 24),))]))
    return laid


def column_major_in_out(files: Files) -> list[Laid]:
    laid = []
    for role in "vo":
        spec, values = files.add(files.random(24, 10), column_major=True)
        laid.append(matrix(role, values, [(spec, ((0, 24),))], transposed=True))
    return laid


def _fused(files: Files, ranges: dict[str, Ranges], transposed: bool = False, column_major: bool = False) -> list[Laid]:
    """Roles that share one tensor of 30 outputs and 14 inputs."""
    spec, stored = files.add(
        files.random(*((14, 30) if transposed != column_major else (30, 14))), column_major=column_major
    )
    values = stored.T if transposed != column_major else stored
    units = {role: np.concatenate([np.arange(*span) for span in own]) for role, own in ranges.items()}
    return [matrix(role, values[units[role]], [(spec, own)], transposed) for role, own in ranges.items()]


BLOCKS: dict[str, Ranges] = {"q": ((0, 18),), "k": ((18, 24),), "v": ((24, 30),)}
GROUPS: dict[str, Ranges] = {
    "q": ((0, 6), (10, 16), (20, 26)),
    "k": ((6, 8), (16, 18), (26, 28)),
    "v": ((8, 10), (18, 20), (28, 30)),
}
GAPS: dict[str, Ranges] = {"v": ((25, 30), (1, 3), (12, 13)), "o": ((3, 7),)}


def neighbours_with_gaps(files: Files) -> list[Laid]:
    """Gaps of every size around the 1% that may be read over."""
    laid = []
    for gap in (0, 1, 2, 30, 500):
        spec, values = files.add(files.random(30, 13), gap=gap)
        laid.append(matrix("v", values, [(spec, ((0, 30),))]))
    return laid


def several_files(files: Files) -> list[Laid]:
    """One matrix out of two files, and two more that share these files."""
    top, upper = files.add(files.random(9, 12), "a")
    bottom, lower = files.add(files.random(7, 12), "b")
    beside, own = files.add(files.random(12, 16), "b")
    both = np.concatenate([lower[2:7], upper])
    return [
        matrix("v", both, [(bottom, ((2, 7),)), (top, ((0, 9),))]),
        matrix("o", own, [(beside, ((0, 12),))]),
        matrix("q", lower[:2], [(bottom, ((0, 2),))]),
    ]


def experts(files: Files) -> list[Laid]:
    """Three experts of 6 hidden units on a width of 11, a tensor each, two of them in another file and out of order."""
    gates, downs = [], []
    for file in "bab":
        gates.append(files.add(files.random(6, 11), file, gap=3))
        downs.append(files.add(files.random(11, 6), file))
    return [
        matrix("gate", np.concatenate([v for _, v in gates]), [(spec, ((0, 6),)) for spec, _ in gates]),
        matrix("down", np.concatenate([v for _, v in downs], axis=1), [(spec, ((0, 11),)) for spec, _ in downs]),
    ]


def experts_in_out(files: Files) -> list[Laid]:
    """Two experts stored (in, out), gate and up fused along the columns, down in column-major tensors."""
    fused = [files.add(files.random(11, 12)) for _ in range(2)]
    downs = [files.add(files.random(11, 6), column_major=True) for _ in range(2)]
    return [
        matrix(role, np.concatenate([v.T[span] for _, v in fused]), [(s, (own,)) for s, _ in fused], transposed=True)
        for role, own in (("gate", (0, 6)), ("up", (6, 12)))
        for span in [slice(*own)]
    ] + [matrix("down", np.concatenate([v for _, v in downs], axis=1), [(s, ((0, 11),)) for s, _ in downs], True)]


def wide(files: Files) -> list[Laid]:
    """Rows of more than one chunk, and of more bytes than a small slot."""
    laid = []
    for role, transposed in (("v", False), ("o", False), ("v", True)):
        spec, stored = files.add(files.random(3, 2 * 8192 + 5))
        laid.append(
            matrix(role, stored.T if transposed else stored, [(spec, ((0, stored.shape[transposed]),))], transposed)
        )
    return laid


def non_finite(files: Files) -> list[Laid]:
    """A NaN in one unit, and an infinity in another where the format has one."""
    laid = []
    for role in "vo":
        for transposed in (False, True):
            values = files.random(20, 20)
            values[3, 7] = np.nan
            if files.dtype != "f8_e4m3":
                values[11, 13] = -np.inf
            spec, stored = files.add(values)
            laid.append(matrix(role, stored.T if transposed else stored, [(spec, ((0, 20),))], transposed))
    return laid


LAYOUTS: dict[str, Callable[[Files], list[Laid]]] = {
    "row-major": row_major,
    "stored-in-out": stored_in_out,
    "column-major": column_major,
    "column-major-in-out": column_major_in_out,
    "fused-blocks": lambda files: _fused(files, BLOCKS),
    "fused-groups": lambda files: _fused(files, GROUPS),
    "fused-columns": lambda files: _fused(files, GROUPS, transposed=True),
    "fused-column-major": lambda files: _fused(files, GROUPS, column_major=True),
    "fused-column-major-in-out": lambda files: _fused(files, BLOCKS, transposed=True, column_major=True),
    "out-of-order-with-gaps": lambda files: _fused(files, GAPS),
    "neighbours-with-gaps": neighbours_with_gaps,
    "several-files": several_files,
    "experts": experts,
    "experts-in-out": experts_in_out,
    "wide": wide,
    "non-finite": non_finite,
}


def lay_out(layout: str, folder: Path, dtype: str, lead: int = 0) -> list[Laid]:
    """The matrices of a layout, their files written."""
    files = Files(folder, dtype, lead)
    laid = LAYOUTS[layout](files)
    files.write()
    return laid


def assert_reduced(laid: Sequence[Laid], reduction: Reduction) -> None:
    """Moments and energies of every matrix, within the limits of tolerances.py."""
    assert reduction.notices == ()
    assert set(reduction.moments) == set(range(len(laid)))
    assert set(reduction.energies) == {
        number for number, entry in enumerate(laid) if entry.matrix.role in UNITS_ARE_OUTPUTS
    }
    for number, entry in enumerate(laid):
        assert_moments(reduction.moments[number], truth_of(entry.values))
        if entry.matrix.role in UNITS_ARE_OUTPUTS:
            assert_energies(reduction.energies[number], entry)


def assert_energies(found: FLOAT64, entry: Laid) -> None:
    """Rows of V, gate and up, columns of O and down; nan exactly where a unit holds a value that is not finite."""
    expected = (entry.values**2).sum(axis=1 if UNITS_ARE_OUTPUTS[entry.matrix.role] else 0)
    expected[~np.isfinite(expected)] = np.nan
    np.testing.assert_allclose(found, expected, rtol=tolerances.ENERGY_RELATIVE, atol=0, equal_nan=True)


def attention_bytes(laid: Sequence[Laid], dtype: str) -> int:
    """Bytes of the matrices, which do not overlap."""
    return sum(entry.values.size for entry in laid) * ITEMSIZE[dtype]


def gaps_between(intervals: Sequence[tuple[int, int]]) -> list[int]:
    """Distances between sorted intervals; negative where two overlap."""
    return [later[0] - earlier[1] for earlier, later in pairwise(sorted(intervals))]


def plan_of(laid: Sequence[Laid], slot_bytes: int) -> Plan:
    return plan_reads([entry.matrix for entry in laid], slot_bytes)


def bits(reduction: Reduction, number: int) -> tuple[object, ...]:
    """Everything that was found of a matrix, to the last bit."""
    energies = reduction.energies.get(number)
    return repr(reduction.moments[number]), None if energies is None else energies.tobytes()


def lay_two_files(folder: Path) -> tuple[list[Laid], Plan, Reduction]:
    """Four matrices in each of two files, a slot each; the plan, and what it gives when nothing happens."""
    laid = []
    for file in ("a", "b"):
        content = bytearray()
        for number in range(4):
            values = normal((16, 32), number, spread=1.0).astype(np.float32)
            spec = TensorSpec(f"{file}{number}", (16, 32), "f32", folder / file, len(content), values.nbytes)
            content += values.tobytes()
            laid.append(matrix("vo"[number % 2], values.astype(np.float64), [(spec, ((0, 16),))]))
        (folder / file).write_bytes(content)
    plan = plan_of(laid, 2048)
    assert len(plan.slots) == 8
    whole = reduce_plan(plan, ReferenceBackend())
    assert_reduced(laid, whole)
    return laid, plan, whole


def assert_survivors(found: Reduction, whole: Reduction, numbers: Sequence[int]) -> None:
    assert sorted(found.moments) == sorted(found.energies) == list(numbers)
    assert [bits(found, number) for number in numbers] == [bits(whole, number) for number in numbers]


class Reads:
    """Every read of the engine: (offset, bytes that came). Nothing is mapped, as on a network file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int = 2**40, fail_after: int = 2**40) -> None:
        self.done: list[tuple[int, int]] = []
        preadv = os.preadv

        def watched(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
            if flags:  # a question, whether a byte is in the page cache
                return preadv(descriptor, buffers, offset, flags)
            if len(self.done) >= fail_after:
                raise OSError(5, "Input/output error")
            count = preadv(descriptor, [buffers[0][:at_most]], offset)
            self.done.append((offset, count))
            return count

        monkeypatch.setattr(os, "preadv", watched)
        monkeypatch.setattr(engine_files, "is_local", lambda descriptor: False)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.done)
