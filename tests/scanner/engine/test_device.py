"""The engine of the device, on the CPU: results, faults at every call, and what is left behind. Nothing may hang."""

import faulthandler
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import LAYOUTS, Files, Laid, assert_reduced, lay_out, matrix

from weightprint.engine import device as engine_device
from weightprint.engine import ring as engine_ring
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import CpuEngine, reduce_plan
from weightprint.engine.device import DeviceEngine, PendingOnDevice, RingSize
from weightprint.engine.files import read_slot
from weightprint.engine.ring import Place, Ring
from weightprint.engine.streams import HostStreams, Mark, Streams
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot, plan_reads
from weightprint_kernels.backend import DeviceBackend
from weightprint_kernels.layout import FLOAT64, ITEMSIZE, UINT8, Chunks, Reduced, Tiles
from weightprint_kernels.reference import ReferenceBackend
from weightprint_kernels.torch_backend import TorchBackend

ON_DEVICE, ON_CPU = "torch-cpu", "reference"
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory is left")
FAILURE = RuntimeError("the launch failed")
CALLS = ("copy", "moments_there", "column_energies_there", "mark", "synchronize")


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A hang ends the process, which is a failure, and shows where every thread was. So do threads that a test leaves
    behind, which would hold up the end of the process."""
    before = set(threading.enumerate())
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5)
    faulthandler.cancel_dump_traceback_later()
    if any(thread.is_alive() for thread in left):
        faulthandler.dump_traceback_later(1, exit=True)
        time.sleep(5)


@dataclass
class Fault:
    """Call number ``at`` of ``call`` raises ``error``, and each one after it too where it is ``lasting``."""

    call: str = "none"
    at: int = 0
    error: Exception = FAILURE
    lasting: bool = False
    fired: int = 0
    calls: list[str] = field(default_factory=list)

    def pass_by(self, call: str) -> None:
        number = self.calls.count(call)
        self.calls.append(call)
        if call == self.call and (number == self.at or (self.lasting and number > self.at)):
            self.fired += 1
            raise self.error


class FaultyMark:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def synchronize(self) -> None:
        self.fault.pass_by("synchronize")


class FaultyStreams(HostStreams):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.fault.pass_by("copy")
        super().copy(target, source)

    def mark(self) -> Mark:
        self.fault.pass_by("mark")
        return FaultyMark(self.fault)

    def free_memory(self) -> None:
        self.fault.pass_by("free_memory")


class FaultyBackend(TorchBackend):
    def __init__(self, fault: Fault, hook: Callable[[], None] = lambda: None) -> None:
        super().__init__("cpu")
        self.fault, self.hook = fault, hook

    def moments_there(self, buffer: torch.Tensor, chunks: Chunks, dtype: str) -> torch.Tensor:
        self.hook()
        self.fault.pass_by("moments_there")
        return super().moments_there(buffer, chunks, dtype)

    def column_energies_there(self, buffer: torch.Tensor, tiles: Tiles, dtype: str) -> torch.Tensor:
        self.fault.pass_by("column_energies_there")
        return super().column_energies_there(buffer, tiles, dtype)


class WatchedRing(Ring):
    """Knows which places are out, and whether one came back that was not."""

    def __init__(self, streams: Streams, device: str, slots: int, slot_bytes: int, processors: frozenset[int]) -> None:
        super().__init__(streams, device, slots, slot_bytes, processors)
        self.out: set[int] = set()
        self.strangers = 0

    def take(self, turn: int, wanted: Callable[[], bool]) -> Place | None:
        place = super().take(turn, wanted)
        if place is not None:
            self.out.add(id(place))
        return place

    def give_back(self, place: Place) -> None:
        self.strangers += id(place) not in self.out
        self.out.discard(id(place))
        super().give_back(place)

    def assert_whole(self) -> None:
        assert self.strangers == 0, "a place came back twice"
        assert self.out == set(), "a place did not come back"
        assert len({id(place) for place in self._free}) == len(self._free) == self.slots


@contextmanager
def opened(
    plans: Sequence[Plan],
    fault: Fault | None = None,
    slots: int = 3,
    readers: int = 2,
    backend: DeviceBackend | None = None,
) -> Iterator[DeviceEngine]:
    """An engine whose places hold the largest slot; once it was left, every place is back and no thread is there."""
    fault = fault or Fault()
    size = RingSize(slots, max(int(plan.length.max()) for plan in plans), readers)
    descriptors = open_descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_device, "streams_of", lambda device: FaultyStreams(fault))
        patch.setattr(engine_device, "Ring", WatchedRing)
        on_cpu = CpuEngine(ReferenceBackend(), 1, ON_CPU)
        engine = DeviceEngine(backend or FaultyBackend(fault), size, lambda: on_cpu, "the device")
    try:
        with engine:
            yield engine
    finally:
        ring = engine.ring
        assert isinstance(ring, WatchedRing)
        ring.assert_whole()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("weightprint-")] == []
        assert open_descriptors() == descriptors


def open_descriptors() -> int:
    """Of regular files."""
    return sum(os.path.isfile(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))  # noqa: PTH208, PTH113


def assert_soon(event: threading.Event) -> None:
    assert event.wait(30)


def plan_of(laid: Sequence[Laid], slot_bytes: int) -> Plan:
    return plan_reads([entry.matrix for entry in laid], slot_bytes)


def checkpoints(folder: Path, count: int, dtype: str = "bf16", rows: int = 24) -> list[list[Laid]]:
    """Each of a Q, whose energies nobody wants, a V by row and an O by column, of tens of small slots."""
    made = []
    for number in range(count):
        (folder / str(number)).mkdir()
        files = Files(folder / str(number), dtype)
        files.seed = 100 * number
        laid = []
        for role in "qvo":
            spec, values = files.add(files.random(rows, 30), gap=1000)
            laid.append(matrix(role, values, [(spec, ((0, rows),))]))
        files.write()
        made.append(laid)
    return made


def carried_out(engine: DeviceEngine, plans: Sequence[Plan], at_once: bool = True) -> list[Reduction]:
    """All submitted before the first result is asked for, or one after the other."""
    if not at_once:
        return [engine.submit(plan).result() for plan in plans]
    pending = [engine.submit(plan) for plan in plans]
    return [one.result() for one in pending]


def assert_same(found: Reduction, expected: Reduction) -> None:
    """What does not depend on how sums are rounded is the same."""
    assert (found.bytes_read, found.notices) == (expected.bytes_read, expected.notices)
    assert found.moments.keys() == expected.moments.keys()
    assert found.energies.keys() == expected.energies.keys()
    for number, merged in found.moments.items():
        other = expected.moments[number]
        assert (merged.n_finite, merged.zeros, merged.abs_max) == (other.n_finite, other.zeros, other.abs_max)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_those_of_the_cpu(tmp_path: Path, layout: str) -> None:
    """Of every dtype, in slots of two sizes, all plans in flight at once."""
    laid, plans = [], []
    for number, dtype in enumerate(ITEMSIZE):
        (tmp_path / dtype).mkdir()
        laid.append(lay_out(layout, tmp_path / dtype, dtype, lead=number % 4))
        plans.append(plan_of(laid[-1], (300, 4000)[number % 2]))
    with opened(plans, slots=4) as engine:
        found = carried_out(engine, plans)
        assert engine.description == "the device"
    for entries, plan, reduction in zip(laid, plans, found, strict=True):
        assert reduction.backend == ON_DEVICE
        assert_reduced(entries, reduction)
        assert_same(reduction, reduce_plan(plan, ReferenceBackend()))


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [2, 3, 12])
def test_no_ring_stops(tmp_path: Path, slots: int, readers: int) -> None:
    """Slots from 60 to 60,000 bytes; one file ends in its middle, and one is not there."""
    laid = checkpoints(tmp_path, 6)
    laid[1] = checkpoints(tmp_path / "1", 1, "f32", rows=500)[0]
    plans = [
        plan_of(entries, slot_bytes) for entries, slot_bytes in zip(laid, (60, 10**6, 400, 60, 60, 60), strict=True)
    ]
    torn, missing = plans[3].paths[0], plans[4].paths[0]
    os.truncate(torn, int(plans[3].offset[len(plans[3]) // 2]) + 1)
    missing.unlink()
    with opened(plans, slots=slots, readers=readers) as engine:
        found = carried_out(engine, plans)
    assert [[notice.code for notice in one.notices] for one in found] == [
        *([], [], []),
        ["E_FILE_TRUNCATED"],
        ["E_READ"],
        [],
    ]
    for number in (0, 1, 2, 5):
        assert_reduced(laid[number], found[number])
    assert set(found[3].moments) == {0}  # of Q, V and O the fault lies in the second
    assert set(found[4].moments) == set()
    assert {one.backend for one in found} == {ON_DEVICE}


def test_of_a_file_that_failed_nothing_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(checkpoints(tmp_path, 1)[0], 400)
    os.truncate(plan.paths[0], int(plan.offset[4]) + 1)
    read: list[int] = []

    def noted(slot: Slot, descriptor: int, buffer: UINT8) -> None:
        read.append(slot.offset)
        read_slot(slot, descriptor, buffer)

    monkeypatch.setattr(engine_ring, "read_slot", noted)
    with opened([plan], readers=1) as engine:
        (found,) = carried_out(engine, [plan])
    assert len(plan) > 6
    assert read == plan.offset[:5].tolist()
    assert found.bytes_read == plan.length[:4].sum()


def test_other_files_outlive_one_that_fails(tmp_path: Path) -> None:
    laid = lay_out("several-files", tmp_path, "bf16")
    plan = plan_of(laid, 60)
    os.truncate(tmp_path / "b", 20)
    with opened([plan]) as engine:
        (found,) = carried_out(engine, [plan])
    assert_same(found, reduce_plan(plan, ReferenceBackend()))
    assert [notice.code for notice in found.notices] == ["E_FILE_TRUNCATED"]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("error", [OUT_OF_MEMORY, FAILURE], ids=["memory", "failure"])
@pytest.mark.parametrize("at", [0, 7])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_fails_no_place_and_no_result_is_lost(
    tmp_path: Path, call: str, at: int, error: Exception, lasting: bool
) -> None:
    laid = checkpoints(tmp_path, 3)
    plans = [plan_of(entries, 400) for entries in laid]
    fault = Fault(call, at, error, lasting)
    with opened(plans, fault) as engine:
        found = carried_out(engine, plans)
        description = engine.description
    assert fault.fired
    for entries, reduction in zip(laid, found, strict=True):
        assert_reduced(entries, reduction)
    redone = [one.backend for one in found].count(ON_CPU)
    assert redone >= 1
    number = "1 checkpoint was" if redone == 1 else f"{redone} checkpoints were"
    assert description == f"the device; {number} redone on the CPU ({type(error).__name__}: {error})"


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("call", CALLS)
def test_without_memory_one_checkpoint_goes_to_the_cpu(tmp_path: Path, call: str, at: int) -> None:
    laid = checkpoints(tmp_path, 4)
    plans = [plan_of(entries, 400) for entries in laid]
    fault = Fault(call, at, OUT_OF_MEMORY)
    with opened(plans, fault) as engine:
        found = carried_out(engine, plans, at_once=False)
        assert engine.description == (
            "the device; 1 checkpoint was redone on the CPU (OutOfMemoryError: no memory is left)"
        )
    backends = [one.backend for one in found]
    assert backends.count(ON_CPU) == 1
    assert backends[-1] == ON_DEVICE
    for entries, reduction in zip(laid, found, strict=True):
        assert_reduced(entries, reduction)


def test_memory_is_freed_when_it_is_missing(tmp_path: Path) -> None:
    """After the device is through with every place, and while nothing holds what was gathered."""
    plans = [plan_of(entries, 400) for entries in checkpoints(tmp_path, 2)]
    fault = Fault("moments_there", 5, OUT_OF_MEMORY)
    with opened(plans, fault) as engine:
        carried_out(engine, plans, at_once=False)
    failed = [number for number, call in enumerate(fault.calls) if call == "moments_there"][5]
    freed = fault.calls.index("free_memory")
    assert fault.calls.count("free_memory") == 1
    assert fault.calls[:freed].count("mark") == fault.calls[:freed].count("synchronize") > 5
    assert failed < freed
    assert OUT_OF_MEMORY.__traceback__ is None


def test_failing_to_free_memory_is_a_failure(tmp_path: Path) -> None:
    """Of the launching thread, for which others wait."""
    laid = checkpoints(tmp_path, 3)
    plans = [plan_of(entries, 400) for entries in laid]

    class Worse(FaultyStreams):
        def free_memory(self) -> None:
            raise FAILURE

    fault = Fault("copy", 0, OUT_OF_MEMORY)
    with opened(plans, fault) as engine:
        engine.streams = Worse(fault)
        found = carried_out(engine, plans, at_once=False)
    assert [one.backend for one in found] == [ON_CPU] * 3


@pytest.mark.parametrize("at", [3, 9])
@pytest.mark.parametrize("call", CALLS)
def test_after_another_failure_the_rest_goes_to_the_cpu(tmp_path: Path, call: str, at: int) -> None:
    laid = checkpoints(tmp_path, 5)
    plans = [plan_of(entries, 400) for entries in laid]
    fault = Fault(call, at)
    with opened(plans, fault) as engine:
        found = carried_out(engine, plans, at_once=False)
        number = [one.backend for one in found].index(ON_CPU)
        count = len(plans) - number
        assert (
            f"; {count} checkpoint{'s were' if count > 1 else ' was'} redone on the CPU (RuntimeError: the launch"
            in (engine.description)
        )
    assert [one.backend for one in found] == [ON_DEVICE] * number + [ON_CPU] * count
    for entries, reduction in zip(laid, found, strict=True):
        assert_reduced(entries, reduction)


def test_a_failure_that_only_the_merger_sees_is_one(tmp_path: Path) -> None:
    """As where a kernel fails after everything was launched."""
    laid = checkpoints(tmp_path, 3)
    plans = [plan_of(entries, 400) for entries in laid]

    class LateMark:
        def synchronize(self) -> None:
            if threading.current_thread().name.startswith("weightprint-merger"):
                raise FAILURE

    class Late(FaultyStreams):
        def mark(self) -> Mark:
            return LateMark()

    with opened(plans) as engine:
        engine.streams = Late(Fault())
        found = carried_out(engine, plans[:1])
        engine.streams = FaultyStreams(Fault())
        found += carried_out(engine, plans[1:])
    assert [one.backend for one in found] == [ON_CPU] * 3
    for entries, reduction in zip(laid, found, strict=True):
        assert_reduced(entries, reduction)


def test_a_broken_device_is_not_called_again(tmp_path: Path) -> None:
    plans = [plan_of(entries, 400) for entries in checkpoints(tmp_path, 4)]
    fault = Fault("copy", 0)
    with opened(plans, fault) as engine:
        carried_out(engine, plans, at_once=False)
    assert fault.calls.count("copy") == 1
    assert "moments_there" not in fault.calls
    assert "free_memory" not in fault.calls


def test_a_long_message_is_one_short_line(tmp_path: Path) -> None:
    plans = [plan_of(entries, 400) for entries in checkpoints(tmp_path, 1)]
    with opened(plans, Fault("copy", 0, RuntimeError("no\n  kernel " + "x" * 1000))) as engine:
        carried_out(engine, plans)
        assert engine.description.startswith(
            "the device; 1 checkpoint was redone on the CPU (RuntimeError: no kernel xxx"
        )
        assert len(engine.description) < 300


@dataclass
class Again:
    """Slots that were read again, as ``then`` has it."""

    slots: list[Slot] = field(default_factory=list)

    def watch(self, patch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None) -> None:
        real = DeviceEngine.reduce_on_cpu

        def noted(engine: DeviceEngine, slot: Slot, plan: Plan) -> list[Reduced]:
            self.slots.append(slot)
            then()
            return real(engine, slot, plan)

        patch.setattr(DeviceEngine, "reduce_on_cpu", noted)


def lossy(folder: Path) -> list[Laid]:
    """Squares that float32 does not hold, columns of zeros, and a matrix that it holds."""
    files = Files(folder, "f32")
    huge, zero = files.random(40, 30) * 1e30, files.random(40, 30)
    zero[:, ::3] = 0
    laid = []
    for role, values in (("v", huge), ("o", zero), ("o", files.random(40, 30)), ("o", huge[:10])):
        spec, stored = files.add(values, gap=1000)
        laid.append(matrix(role, stored, [(spec, ((0, len(stored)),))]))
    files.write()
    return laid


def test_what_float32_does_not_hold_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device's own account: nothing is redone. Of one file with many slots no descriptor stays open."""
    again = Again()
    again.watch(monkeypatch)
    laid = lossy(tmp_path)
    plan = plan_of(laid, 600)
    with opened([plan]) as engine:
        (found,) = carried_out(engine, [plan])
        assert engine.description == "the device"
    assert found.backend == ON_DEVICE
    assert_reduced(laid, found)
    assert (found.energies[1][::3] == 0).all()
    expected: FLOAT64 = (laid[0].values ** 2).sum(axis=1)
    np.testing.assert_allclose(found.energies[0], expected, rtol=1e-14)
    healthy = laid[2].matrix.parts[0].tensor.offset
    assert len(again.slots) > 10
    assert not [slot for slot in again.slots if healthy <= slot.offset < healthy + 40 * 30 * 4]


def test_what_float32_holds_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Again()
    again.watch(monkeypatch)
    plan = plan_of(checkpoints(tmp_path, 1)[0], 400)
    with opened([plan]) as engine:
        carried_out(engine, [plan])
    assert again.slots == []


def test_a_file_that_fails_when_read_again_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(engine: DeviceEngine, slot: Slot, plan: Plan) -> list[Reduced]:
        raise CheckpointError("E_READ", "is gone", path=slot.path)

    monkeypatch.setattr(DeviceEngine, "reduce_on_cpu", gone)
    plan = plan_of(lossy(tmp_path), 600)
    with opened([plan]) as engine:
        (found,) = carried_out(engine, [plan])
    assert [notice.code for notice in found.notices] == ["E_READ"]
    assert found.moments == {}
    assert found.backend == ON_DEVICE


@pytest.mark.parametrize("most", [0, 3000, 2**26])
def test_results_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(engine_device, "RESULT_BYTES", most)
    laid = checkpoints(tmp_path, 3)
    plans = [plan_of(entries, 400) for entries in laid]
    with opened(plans) as engine:
        pending = [engine.submit(plan) for plan in plans]
        found = [one.result() for one in pending]
        parts = {len(one.merges) for one in pending if isinstance(one, PendingOnDevice)}
    slots = len(plans[0])
    assert slots > 10
    assert parts == {0: {slots + 1}, 2**26: {1}}.get(most, parts)
    assert all(1 < count < slots for count in parts) or most != 3000
    for entries, reduction in zip(laid, found, strict=True):
        assert_reduced(entries, reduction)


def test_launching_waits_for_a_merger_that_is_far_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results wait on the device: no more than PARTS of them, whatever is launched meanwhile."""
    monkeypatch.setattr(engine_device, "RESULT_BYTES", 0)
    plan = plan_of(checkpoints(tmp_path, 1)[0], 400)
    waiting: list[int] = []

    def slowly(
        self: PendingOnDevice, slots: list[tuple[Slot | None, CheckpointError | None]], there: torch.Tensor, mark: Mark
    ) -> None:
        time.sleep(0.002)
        waiting.append(sum(not merge.done() for merge in self.merges))
        merge(self, slots, there, mark)

    merge = PendingOnDevice.merge
    monkeypatch.setattr(PendingOnDevice, "merge", slowly)
    with opened([plan]) as engine:
        carried_out(engine, [plan])
    assert len(waiting) == len(plan) + 1 > 2 * engine_device.PARTS
    assert max(waiting) <= engine_device.PARTS


def test_done_says_when_nothing_is_waited_for(tmp_path: Path) -> None:
    plan = plan_of(checkpoints(tmp_path, 1)[0], 400)
    go = threading.Event()
    with opened([plan], backend=FaultyBackend(Fault(), lambda: assert_soon(go))) as engine:
        pending = engine.submit(plan)
        assert not pending.done()
        go.set()
        pending.result()
        assert pending.done()


@pytest.mark.parametrize("slots", [2, 12])
def test_leaving_in_the_middle(tmp_path: Path, slots: int) -> None:
    """By an interrupt: the first plan is done, the second on its way, the third waits, and nothing stays behind."""
    plans = [plan_of(entries, 400) for entries in checkpoints(tmp_path, 3)]
    reached = threading.Event()
    calls = 0
    engine: DeviceEngine

    def until_left() -> None:
        nonlocal calls
        calls += 1
        if calls == len(plans[0]) + 5:
            reached.set()
            while not engine._left:
                time.sleep(0.001)

    with (
        pytest.raises(KeyboardInterrupt),
        opened(plans, slots=slots, readers=3, backend=FaultyBackend(Fault(), until_left)) as engine,
    ):
        pending = [engine.submit(plan) for plan in plans]
        first = pending[0].result()
        assert_soon(reached)
        raise KeyboardInterrupt
    assert first.backend == ON_DEVICE
    for one in pending[1:]:
        with pytest.raises(CancelledError):
            one.result()
    assert calls == len(plans[0]) + 5


def test_leaving_before_anything_is_read(tmp_path: Path) -> None:
    plans = [plan_of(entries, 400) for entries in checkpoints(tmp_path, 3)]
    with opened(plans, slots=2) as engine:
        for plan in plans:
            engine.submit(plan)
    with opened(plans):
        pass


def test_leaving_does_not_wait_for_what_is_to_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(lossy(tmp_path), 600)
    again, reached = Again(), threading.Event()
    engine: DeviceEngine

    def until_left() -> None:
        reached.set()
        while not engine._left:
            time.sleep(0.001)

    again.watch(monkeypatch, until_left)
    with opened([plan]) as engine:
        pending = engine.submit(plan)
        assert_soon(reached)
    assert len(again.slots) == 1
    with pytest.raises(CancelledError):
        pending.result()


def interpreted(folder: Path) -> None:
    """What the test below runs: Triton's kernels in a process that interprets them."""
    from weightprint_kernels.triton_backend import TritonBackend

    laid = lay_out("several-files", folder, "bf16", lead=1)
    plan = plan_of(laid, 500)
    with np.errstate(all="ignore"), opened([plan], backend=TritonBackend("cpu")) as engine:
        (found,) = carried_out(engine, [plan])
        assert engine.description == "the device"
    assert found.backend == "triton"
    assert_reduced(laid, found)


def test_triton(tmp_path: Path) -> None:
    tests = Path(__file__).parents[2]
    folders = (Path(__file__).parent, tests, tests / "kernels", tests / "scanner")
    search = os.pathsep.join(str(folder) for folder in folders)
    code = "import pathlib, sys, test_device; test_device.interpreted(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
