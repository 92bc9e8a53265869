"""The engine: what a plan reads and makes of it, against float64 numpy; faults of files cost what they touch."""

import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import (
    LAYOUTS,
    Files,
    Laid,
    Reads,
    assert_reduced,
    assert_survivors,
    attention_bytes,
    bits,
    gaps_between,
    lay_out,
    lay_two_files,
    matrix,
    plan_of,
)
from kernel_backends import backends
from kernel_cases import Case, encode, normal

import tiny
from weightprint.data import TensorSpec
from weightprint.discover import discover
from weightprint.engine import files as engine_files
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import reduce_plan
from weightprint.engine.files import open_regular
from weightprint.errors import CheckpointError
from weightprint.fingerprint import read_structure
from weightprint.plan import Plan, plan_reads
from weightprint_kernels.layout import FLOAT32, ITEMSIZE, N_FINITE, TILE_COLUMNS, UINT8, Chunks, Tiles
from weightprint_kernels.numba_backend import NumbaBackend
from weightprint_kernels.reference import ReferenceBackend


class Counting:
    """A backend that sees no byte and reports finite zeros; it notes the most bytes that it was given."""

    name = device = "counting"

    def __init__(self) -> None:
        self.largest = 0

    def place(self, data: UINT8) -> UINT8:
        self.largest = max(self.largest, data.nbytes)
        return data

    def moments(self, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT32:
        rows = np.zeros((len(chunks), 8), np.float32)
        rows[:, N_FINITE] = chunks.count
        return rows

    def column_energies(self, buffer: Any, tiles: Tiles, dtype: str) -> FLOAT32:
        return np.ones((len(tiles), TILE_COLUMNS), np.float32)


@pytest.mark.parametrize("slot_bytes", [50, 1000, 2**22], ids=lambda size: f"slot-{size}")
@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", backends())
def test_reduction_against_float64(backend: str, layout: str, dtype: str, slot_bytes: int, tmp_path: Path) -> None:
    laid = lay_out(layout, tmp_path, dtype)
    plan = plan_of(laid, slot_bytes)
    reduction = reduce_plan(plan, backends()[backend]())
    assert reduction.backend == backends()[backend]().name
    assert_reduced(laid, reduction)
    assert reduction.bytes_read == plan.read


@pytest.mark.parametrize("lead", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("layout", ["fused-columns", "several-files"])
def test_tensors_that_start_anywhere(layout: str, dtype: str, lead: int, tmp_path: Path) -> None:
    laid = lay_out(layout, tmp_path, dtype, lead)
    assert_reduced(laid, reduce_plan(plan_of(laid, 300), next(iter(backends().values()))()))


def test_encodings_may_change_inside_a_slot(tmp_path: Path) -> None:
    content = bytearray()
    laid = []
    for number, dtype in enumerate(sorted(ITEMSIZE)):
        raw = encode(normal((6, 9), number, spread=1.0), dtype)
        spec = TensorSpec(dtype, (6, 9), dtype, tmp_path / "a", len(content), raw.size)
        content += raw.tobytes()
        laid.append(matrix("v", Case("", dtype, raw).values(), [(spec, ((0, 6),))]))
    (tmp_path / "a").write_bytes(content)
    plan = plan_of(laid, 2**20)
    assert len(plan.slots) == 1
    assert_reduced(laid, reduce_plan(plan, ReferenceBackend()))


def test_the_same_input_gives_the_same_bits(tmp_path: Path) -> None:
    laid = lay_out("wide", tmp_path, "bf16")
    plan = plan_of(laid, 20_000)
    for make in backends().values():
        first, second = reduce_plan(plan, make()), reduce_plan(plan, make())
        assert [bits(first, number) for number in range(3)] == [bits(second, number) for number in range(3)]


def test_an_empty_plan() -> None:
    assert reduce_plan(plan_reads([]), ReferenceBackend()) == Reduction({}, {}, 0, (), "reference")


def test_sharded_checkpoint_reads_its_attention_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny.llama(0)
    tiny.save_sharded(tmp_path, weights)
    (checkpoint,) = discover([tmp_path])
    structure = read_structure(checkpoint)
    reads = Reads(monkeypatch)
    reduction = reduce_plan(structure.plan, ReferenceBackend())
    attention = sum(value.nbytes for name, value in weights.items() if "self_attn" in name)
    assert structure.plan.selected == attention
    assert len(reduction.moments) == 24
    assert attention <= reads.total == reduction.bytes_read <= 1.02 * attention


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_byte_is_read_twice(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid = lay_out(layout, tmp_path, "bf16")
    plan = plan_of(laid, 500)
    per_file = {path: [slot for slot in plan.slots if slot.path == path] for path in {slot.path for slot in plan.slots}}
    for slots in per_file.values():
        assert min(gaps_between([(slot.offset, slot.offset + slot.length) for slot in slots]), default=0) >= 0
    reads = Reads(monkeypatch)
    reduction = reduce_plan(plan, Counting())
    assert reads.total == plan.read == reduction.bytes_read
    assert plan.selected >= attention_bytes(laid, "bf16")


def test_reads_that_come_in_bits_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid = lay_out("fused-groups", tmp_path, "bf16")
    reads = Reads(monkeypatch, at_most=7)
    assert_reduced(laid, reduce_plan(plan_of(laid, 400), ReferenceBackend()))
    assert max(count for _, count in reads.done) == 7


def big_plan(folder: Path, rows: int, slot_bytes: int) -> Plan:
    """Two large matrices in a file that is all hole."""
    columns = 1024
    path = folder / f"large-{rows}"
    with path.open("wb") as file:
        file.truncate(2 * rows * columns * 2)
    laid = []
    for number in range(2):
        size = rows * columns * 2
        spec = TensorSpec(f"t{number}", (rows, columns), "bf16", path, number * size, size)
        laid.append(matrix("q", np.empty((rows, columns)), [(spec, ((0, rows),))]).matrix)
    return plan_reads(laid, slot_bytes)


def peak_of(plan: Plan) -> tuple[int, int]:
    """Most bytes at once and peak of memory of a reduction, less what the plan itself holds."""
    backend = Counting()
    tracemalloc.start()
    reduce_plan(plan, backend)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return backend.largest, peak


@pytest.mark.parametrize("local", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("slot_bytes", [2**16, 2**20])
def test_memory_is_one_slot_whatever_the_size(
    slot_bytes: int, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped is no memory of Python's, and no more than a slot either; a slot that waits is some kilobytes."""
    monkeypatch.setattr(engine_files, "is_local", lambda descriptor: local)
    (small, low), (large, high) = (peak_of(big_plan(tmp_path, rows, slot_bytes)) for rows in (1024, 8192))
    assert small == large == slot_bytes
    slots = 2 * 8192 * 2048 // slot_bytes
    assert high < (0 if local else slot_bytes) + 300_000 + 3_000 * slots
    assert high < low + 100_000 + 3_000 * slots


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[list[Laid], Plan, Reduction]:
    return lay_two_files(tmp_path)


def test_a_file_cut_short_after_planning_costs_what_lies_behind_the_cut(
    two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path
) -> None:
    _, plan, whole = two_files
    os.truncate(tmp_path / "a", 2 * 2048 + 100)
    found = reduce_plan(plan, ReferenceBackend())
    assert_survivors(found, whole, [0, 1, 4, 5, 6, 7])
    (notice,) = found.notices
    assert (notice.code, notice.path) == ("E_FILE_TRUNCATED", str(tmp_path / "a"))
    assert f"ends at byte {2 * 2048 + 100}, and its header describes bytes up to {3 * 2048} at least" in notice.reason
    assert found.bytes_read == 6 * 2048


def test_a_matrix_of_which_some_slots_are_gone_is_lost_whole(tmp_path: Path) -> None:
    laid = lay_out("fused-groups", tmp_path, "f32")
    os.truncate(tmp_path / "a", laid[0].matrix.parts[0].tensor.nbytes - 1)
    found = reduce_plan(plan_of(laid, 14 * 4), ReferenceBackend())
    assert sorted(found.moments) == [0, 1]
    assert sorted(found.energies) == []


def test_a_matrix_out_of_two_files_is_lost_with_either(tmp_path: Path) -> None:
    laid = lay_out("several-files", tmp_path, "f32")
    plan = plan_of(laid, 12 * 4)
    (tmp_path / "a").unlink()
    found = reduce_plan(plan, ReferenceBackend())
    assert sorted(found.moments) == [1, 2]
    assert [notice.code for notice in found.notices] == ["E_READ"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [("gone", "E_READ"), ("pipe", "E_NOT_REGULAR"), ("directory", "E_NOT_REGULAR"), ("empty", "E_FILE_TRUNCATED")],
)
def test_a_file_that_became_something_else(
    two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path, damage: str, code: str
) -> None:
    _, plan, whole = two_files
    path = tmp_path / "a"
    path.unlink()
    {"gone": lambda: None, "pipe": lambda: os.mkfifo(path), "directory": path.mkdir, "empty": path.touch}[damage]()
    found = reduce_plan(plan, ReferenceBackend())
    assert_survivors(found, whole, [4, 5, 6, 7])
    assert [(notice.code, notice.path) for notice in found.notices] == [(code, str(path))]


def test_a_disk_that_fails_in_the_middle(
    two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, whole = two_files
    Reads(monkeypatch, fail_after=5)
    found = reduce_plan(plan, ReferenceBackend())
    assert_survivors(found, whole, [0, 1, 2, 3, 4])
    (notice,) = found.notices
    assert (notice.code, notice.path) == ("E_READ", str(tmp_path / "b"))
    assert "at byte 2048 failed (Input/output error)" in notice.reason


def test_faults_of_the_device_are_not_taken_for_faults_of_a_file(
    two_files: tuple[list[Laid], Plan, Reduction],
) -> None:
    class Broken(Counting):
        def moments(self, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT32:
            raise RuntimeError("the device is gone")

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count, not paths
    with pytest.raises(RuntimeError, match="the device is gone"):
        reduce_plan(two_files[1], Broken())
    gc.collect()  # the exception holds the frames, and they what was mapped
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_only_regular_files_are_opened_for_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError) as caught:
        open_regular(tmp_path / "pipe")
    assert (caught.value.code, caught.value.path) == ("E_NOT_REGULAR", str(tmp_path / "pipe"))


def test_the_bits_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path) -> None:
    """Threads share what is mapped, so a slot is larger on a smaller machine; a fingerprint must not tell."""
    files = Files(tmp_path, "bf16")
    laid = []
    for role, shape in (("v", (5000, 2000)), ("o", (2000, 5000))):
        spec, values = files.add(files.random(*shape))
        laid.append(matrix(role, values, [(spec, ((0, shape[0]),))]))
    files.write()
    found = [reduce_plan(plan_of(laid, size * 2**20), NumbaBackend()) for size in (16, 32, 64)]
    assert len({tuple(bits(one, number) for number in range(2)) for one in found}) == 1
