"""The engine of the CPU: slots of several checkpoints on several threads, of which each has its own faults."""

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import LAYOUTS, Laid, assert_reduced, assert_survivors, bits, lay_out, lay_two_files, matrix, plan_of

import tiny
from weightprint import scan as scans
from weightprint.data import Checkpoint, TensorSpec
from weightprint.engine import files as engine_files
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import CpuEngine, PendingOnCpu, reduce_plan
from weightprint.engine.guard import installed_guard
from weightprint.fingerprint import Structure
from weightprint.plan import Plan, plan_reads
from weightprint.reading import Read
from weightprint.scan import Report, ScanOptions, scan
from weightprint_kernels.backend import Backend
from weightprint_kernels.layout import UINT8, Rectangles, Reduced
from weightprint_kernels.numba_backend import NumbaBackend
from weightprint_kernels.torch_backend import TorchBackend


class Meanwhile(NumbaBackend):
    """Does something at a moment of its life: when it is given bytes for the ``at``-th time, which it then holds."""

    def __init__(self, act: Callable[[], None], at: int = 0) -> None:
        self.act, self.at, self.count = act, at, 0

    def place(self, data: UINT8) -> UINT8:
        if self.count == self.at:
            self.act()
        self.count += 1
        return super().place(data)


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[list[Laid], Plan, Reduction]:
    """Four matrices in each of two files, and what they give when nothing happens."""
    laid, plan, _ = lay_two_files(tmp_path)
    return laid, plan, reduce_plan(plan, NumbaBackend())


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count, not paths


def same(found: Reduction, whole: Reduction) -> bool:
    return (
        found.moments.keys() == whole.moments.keys()
        and all(bits(found, number) == bits(whole, number) for number in whole.moments)
        and found.notices == whole.notices
    )


@pytest.mark.parametrize("make", [NumbaBackend, TorchBackend], ids=["numba", "torch"])
def test_several_checkpoints_on_several_threads_give_the_bits_of_one_by_one(
    make: Callable[[], Backend], tmp_path: Path
) -> None:
    plans = []
    for number, layout in enumerate(LAYOUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        plans.append(plan_of(lay_out(layout, folder, "bf16", lead=number % 5), 300))
    alone = [reduce_plan(plan, make()) for plan in plans]
    before = open_descriptors()
    with CpuEngine(make(), 4) as engine:
        pending = [engine.submit(plan) for plan in plans]
        together = [one.result() for one in pending]
        # In whatever order they are asked for.
        backwards = [one.result() for one in reversed([engine.submit(plan) for plan in plans])]
    assert [same(found, whole) for found, whole in zip(together, alone, strict=True)] == [True] * len(plans)
    assert [same(found, whole) for found, whole in zip(backwards[::-1], alone, strict=True)] == [True] * len(plans)
    assert open_descriptors() == before


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_cut_to_half_while_its_bytes_are_held(
    threads: int, two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path
) -> None:
    """The whole of it in one slot: SIGBUS arrives in the middle of the arithmetic, and the process goes on."""
    if installed_guard() is None:
        pytest.skip("files are not mapped on this system")
    rows, columns = 64, 4096
    (tmp_path / "big").write_bytes(np.ones(rows * columns, np.float32).tobytes())
    _, small, whole = two_files
    big = plan_of(lay_big(tmp_path / "big", rows, columns), 2**22)
    assert len(big) == 1
    before = open_descriptors()
    cut = Meanwhile(lambda: os.truncate(tmp_path / "big", rows * columns * 2))
    with CpuEngine(cut, threads) as engine:
        first, second = engine.submit(big), engine.submit(small)
        found = first.result()
        beside = second.result()
    assert (found.moments, found.energies) == ({}, {})
    assert [(notice.code, notice.path) for notice in found.notices] == [("E_FILE_TRUNCATED", str(tmp_path / "big"))]
    assert same(beside, whole)
    assert open_descriptors() == before


def lay_big(path: Path, rows: int, columns: int) -> list[Laid]:
    """A matrix of ones."""
    spec = TensorSpec("v", (rows, columns), "f32", path, 0, rows * columns * 4)
    return [matrix("v", np.ones((rows, columns)), [(spec, ((0, rows),))])]


@pytest.mark.parametrize("local", [True, False], ids=["mapped", "read"])
def test_a_file_that_shrinks_between_two_slots(
    local: bool, two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before stays, and what lies behind is lost with a notice."""
    monkeypatch.setattr(engine_files, "is_local", lambda descriptor: local)
    _, plan, whole = two_files

    def cut() -> None:
        os.truncate(tmp_path / "a", 2 * 2048 + 100)

    found = reduce_plan(plan, Meanwhile(cut, at=1))
    assert_survivors(found, whole, [0, 1, 4, 5, 6, 7])
    assert [(notice.code, notice.path) for notice in found.notices] == [("E_FILE_TRUNCATED", str(tmp_path / "a"))]
    assert found.bytes_read == 6 * 2048


def test_a_file_that_failed_is_read_no_further(
    two_files: tuple[list[Laid], Plan, Reduction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, _ = two_files
    os.truncate(tmp_path / "a", 100)
    asked = []
    whole = engine_files._require_size

    def noted(slot: Any, descriptor: int) -> None:
        asked.append((slot.path.name, slot.offset))
        whole(slot, descriptor)

    monkeypatch.setattr(engine_files, "_require_size", noted)
    reduce_plan(plan, NumbaBackend())
    assert [offset for name, offset in asked if name == "a"] == [0]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_checkpoint_that_fails_does_not_disturb_those_in_flight_with_it(failing: int, tmp_path: Path) -> None:
    plans, wholes = [], []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        _, plan, _ = lay_two_files(tmp_path / str(number))
        plans.append(plan)
        wholes.append(reduce_plan(plan, NumbaBackend()))
    (tmp_path / str(failing) / "a").unlink()
    before = open_descriptors()
    with CpuEngine(NumbaBackend(), 4) as engine:
        found = [one.result() for one in [engine.submit(plan) for plan in plans]]
    for number, (reduction, whole) in enumerate(zip(found, wholes, strict=True)):
        if number == failing:
            assert_survivors(reduction, whole, [4, 5, 6, 7])
            assert [notice.code for notice in reduction.notices] == ["E_READ"]
        else:
            assert same(reduction, whole)
    assert open_descriptors() == before


class Broken(NumbaBackend):
    """Cannot reduce 8-bit floats."""

    def reduce(self, buffer: UINT8, rectangles: Rectangles, dtype: str) -> Reduced:
        if dtype == "f8_e5m2":
            raise RuntimeError("a bug")
        return super().reduce(buffer, rectangles, dtype)


def test_another_fault_is_raised_by_the_result_of_its_own_plan(tmp_path: Path) -> None:
    plans = []
    for dtype in ("bf16", "f8_e5m2", "f16"):
        (tmp_path / dtype).mkdir()
        plans.append(plan_of(lay_out("fused-groups", tmp_path / dtype, dtype), 100))
    before = open_descriptors()
    with CpuEngine(Broken(), 3) as engine:
        first, second, third = (engine.submit(plan) for plan in plans)
        with pytest.raises(RuntimeError, match="a bug"):
            second.result()
        assert same(third.result(), reduce_plan(plans[2], NumbaBackend()))
        assert same(first.result(), reduce_plan(plans[0], NumbaBackend()))
    del first, second, third  # the faults of slots hold the frames that they came from
    assert open_descriptors() == before


class Gate(NumbaBackend):
    """Waits with every slot until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def place(self, data: UINT8) -> UINT8:
        assert self.opened.wait(60)
        return super().place(data)


def wait_until_done(pending: PendingOnCpu) -> None:
    """Ask until it is; a minute is for a machine that does other things."""
    turn = threading.Event()
    for _ in range(6000):
        if pending.done():
            return
        turn.wait(0.01)
    raise AssertionError("never done")


def test_done_says_whether_the_result_would_wait(two_files: tuple[list[Laid], Plan, Reduction]) -> None:
    _, plan, whole = two_files
    gate = Gate()
    with CpuEngine(gate, 2) as engine:
        pending = engine.submit(plan)
        assert not pending.done()
        gate.opened.set()
        wait_until_done(pending)
        assert same(pending.result(), whole)


def test_done_also_where_the_result_is_a_fault(tmp_path: Path) -> None:
    plan = plan_of(lay_out("fused-groups", tmp_path, "f8_e5m2"), 100)
    with CpuEngine(Broken(), 1) as engine:
        pending = engine.submit(plan)
        wait_until_done(pending)
        with pytest.raises(RuntimeError, match="a bug"):
            pending.result()


def test_an_empty_plan_is_done_at_once() -> None:
    with CpuEngine(NumbaBackend(), 1) as engine:
        pending = engine.submit(plan_reads([]))
        assert pending.done()
        assert pending.result() == Reduction({}, {}, 0, (), "numba")


def test_leaving_the_engine_gives_up_what_is_not_done(two_files: tuple[list[Laid], Plan, Reduction]) -> None:
    """An interruption does not wait for terabytes: slots on a thread come to their end, the others are not read."""
    _, plan, _ = two_files
    gate = Gate()
    with CpuEngine(gate, 1) as engine:
        for _ in range(50):
            engine.submit(plan)
        threading.Timer(0.1, gate.opened.set).start()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("weightprint-reader")]
    assert left == []


def test_every_thread_takes_part(two_files: tuple[list[Laid], Plan, Reduction]) -> None:
    """Three slots at a time are in the backend before any of them goes on."""
    _, plan, whole = two_files

    class Meeting(NumbaBackend):
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)

        def place(self, data: UINT8) -> UINT8:
            self.barrier.wait(60)
            return super().place(data)

    assert same(reduce_plan(plan, Meeting(), threads=4), whole)


# --- through a whole scan -------------------------------------------------------------------------------------


def scanned(folder: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Report:
    """A scan on the CPU of three checkpoints; ``act`` is called once, when all headers are known and bytes are held."""
    place, read_structure = NumbaBackend.place, scans.read_structure
    known = threading.Semaphore(0)
    acted: list[int] = []
    lock = threading.Lock()

    def counted(checkpoint: Checkpoint, read: Read) -> Structure:
        structure = read_structure(checkpoint, read)
        known.release()
        return structure

    def meanwhile(self: NumbaBackend, data: UINT8) -> UINT8:
        with lock:
            if not acted:
                acted.append(1)
                assert all(known.acquire(timeout=60) for _ in range(3))
                act()
        return place(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(NumbaBackend, "place", meanwhile)
        patch.setattr(scans, "read_structure", counted)
        report = scan(ScanOptions(paths=(folder / "models",), store=folder / "store", references=(), device="cpu"))
    assert acted
    return report


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replaced(path: Path) -> None:
    """By another file of the same size, as a downloader does at its end."""
    other = path.with_suffix(".part")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = {"grown": grown, "replaced": replaced, "shortened": shortened}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_costs_its_checkpoint_alone(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three checkpoints are in flight at once; the next scan reads the changed one again."""
    for name in "abc":
        tiny.save(tmp_path / "models" / name, tiny.llama(ord(name), layers=3))
    weights = tmp_path / "models/b/model.safetensors"
    original = weights.read_bytes()
    report = scanned(tmp_path, monkeypatch, lambda: CHANGES[change](weights))
    found = {outcome.fingerprint.name: outcome.fingerprint for outcome in report.outcomes}
    assert {name: fingerprint.status for name, fingerprint in found.items()} == {
        "a": "complete",
        "b": "failed",
        "c": "complete",
    }
    assert (found["b"].code, found["b"].matrices, found["b"].energies) == ("E_CHANGED", (), {})
    assert found["b"].notices[0].path == str(weights)
    weights.write_bytes(original)
    again = scan(ScanOptions(paths=(tmp_path / "models",), store=tmp_path / "store", references=(), device="cpu"))
    assert {(o.fingerprint.name, o.fingerprint.status, o.fresh) for o in again.outcomes} == {
        ("a", "complete", True),
        ("b", "complete", False),
        ("c", "complete", True),
    }


def test_nothing_stays_open_after_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        tiny.save_sharded(tmp_path / "models" / name, tiny.llama(ord(name), layers=3))
    before = open_descriptors()
    scanned(tmp_path, monkeypatch, lambda: shortened(tmp_path / "models/b/model-00002-of-00003.safetensors"))
    assert open_descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weightprint")]


def test_threads_give_the_fingerprints_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last byte in the store."""
    for name in "abcd":
        tiny.save_sharded(tmp_path / "models" / name, tiny.llama(ord(name), layers=3))
    kept = []
    for threads in ("1", "4"):
        monkeypatch.setenv("WEIGHTPRINT_THREADS", threads)
        store = tmp_path / f"store{threads}"
        scan(ScanOptions(paths=(tmp_path / "models",), store=store, references=(), device="cpu"))
        kept.append({path.name: path.read_bytes() for path in store.iterdir()})
    assert len(kept[0]) == 4
    assert kept[0] == kept[1]


def test_layouts_on_four_threads(tmp_path: Path) -> None:
    laid = lay_out("several-files", tmp_path, "f32")
    assert_reduced(laid, reduce_plan(plan_of(laid, 100), NumbaBackend(), threads=4))
