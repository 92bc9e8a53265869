"""Putting slots together: in plan order, whatever came of the others, and nothing of a file from its failure on."""

from pathlib import Path

import numpy as np
import pytest
from engine_cases import Laid, bits, lay_out, lay_two_files, plan_of

import tolerances
from weightprint.engine.collect import Collector, Reduction
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot
from weightprint_kernels.compute import reduce
from weightprint_kernels.layout import Reduced
from weightprint_kernels.reference import ReferenceBackend

TwoFiles = tuple[list[Laid], Plan, Reduction]


def reduced(slot: Slot) -> list[Reduced]:
    """What the reference makes of a slot."""
    backend = ReferenceBackend()
    data = np.frombuffer(slot.path.read_bytes(), np.uint8)[slot.offset : slot.offset + slot.length]
    return [reduce(backend, data, data, batch.rectangles, batch.dtype) for batch in slot.batches]


@pytest.fixture
def two_files(tmp_path: Path) -> TwoFiles:
    return lay_two_files(tmp_path)


def broken(word: str, plan: Plan, file: int) -> CheckpointError:
    return CheckpointError("E_READ", word, path=plan.paths[file])


def test_slots_one_by_one_are_the_whole(two_files: TwoFiles) -> None:
    _, plan, whole = two_files
    collector = Collector(plan)
    for slot in plan.slots:
        collector.add(slot, reduced(slot))
    found = collector.finish("reference")
    assert (found.bytes_read, found.notices, found.backend) == (plan.read, (), "reference")
    assert [bits(found, number) for number in range(8)] == [bits(whole, number) for number in range(8)]


@pytest.mark.parametrize("failed", range(8))
def test_of_a_file_nothing_counts_from_its_failure_on(failed: int, two_files: TwoFiles) -> None:
    """Also what other threads had read of it by then: which they had is chance."""
    _, plan, whole = two_files
    collector = Collector(plan)
    for number, slot in enumerate(plan.slots):
        if number == failed:
            collector.fail(number, broken("first", plan, failed // 4))
        else:
            collector.add(slot, reduced(slot))
    found = collector.finish("")
    kept = [number for number in range(8) if number // 4 != failed // 4 or number < failed]
    assert sorted(found.moments) == sorted(found.energies) == kept
    assert [bits(found, number) for number in kept] == [bits(whole, number) for number in kept]
    assert [(notice.code, notice.reason, notice.path) for notice in found.notices] == [
        ("E_READ", "first", str(plan.paths[failed // 4]))
    ]


def test_the_first_failure_of_each_file_is_what_is_said(two_files: TwoFiles) -> None:
    _, plan, _ = two_files
    collector = Collector(plan)
    for number, word in ((1, "one"), (2, "two"), (5, "five"), (7, "seven")):
        collector.fail(number, broken(word, plan, number // 4))
    found = collector.finish("")
    assert [notice.reason for notice in found.notices] == ["one", "five"]
    assert (found.moments, found.energies, found.bytes_read) == ({}, {}, 0)


def test_what_was_skipped_is_lost(two_files: TwoFiles) -> None:
    _, plan, _ = two_files
    collector = Collector(plan)
    for number, slot in enumerate(plan.slots):
        if number in (2, 3):
            collector.skip(number)
        else:
            collector.add(slot, reduced(slot))
    assert sorted(collector.finish("").moments) == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("how", ["failed", "skipped"])
@pytest.mark.parametrize("lost", [0, 2, 5])
def test_a_matrix_that_lost_a_slot_is_lost_whole(lost: int, how: str, tmp_path: Path) -> None:
    """Its rows lie in many slots; no moment of a part is taken for one of the whole."""
    plan = plan_of(lay_out("fused-groups", tmp_path, "f32"), 14 * 4)
    collector = Collector(plan)
    touched: set[int] = set()
    for number, slot in enumerate(plan.slots):
        if number >= lost:
            touched.update(matrix for batch in slot.batches for matrix in batch.matrix.tolist())
            collector.fail(number, broken("gone", plan, 0)) if how == "failed" else collector.skip(number)
        else:
            collector.add(slot, reduced(slot))
    found = collector.finish("")
    assert set(found.moments) == {0, 1, 2} - touched
    assert not set(found.energies) & touched


def test_no_slot_at_all(two_files: TwoFiles) -> None:
    assert Collector(two_files[1]).finish("x") == Reduction({}, {}, 0, (), "x")


def test_column_energies_of_slots_add_up(tmp_path: Path) -> None:
    """O's units go through every row: each slot adds to all of them, and reading in one gives the same sums."""
    laid = lay_out("row-major", tmp_path, "bf16")
    sums = []
    for slot_bytes in (20, 2**20):
        plan = plan_of(laid, slot_bytes)
        collector = Collector(plan)
        for slot in plan.slots:
            collector.add(slot, reduced(slot))
        sums.append(collector.finish("").energies[3])
    for found in sums:
        np.testing.assert_allclose(found, (laid[3].values ** 2).sum(axis=0), rtol=tolerances.ENERGY_RELATIVE)
