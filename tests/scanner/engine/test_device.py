"""The engine of the device, on the CPU: results, faults at every call, and what is left behind. Nothing may hang."""

import os
import threading
import time
from pathlib import Path

import pytest
from device_engine_cases import (
    CALLS,
    FAILURE,
    ON_CPU,
    ON_DEVICE,
    OUT_OF_MEMORY,
    Fault,
    FaultyStreams,
    assert_same,
    carried_out,
    checkpoints,
    opened,
    plan_of,
)
from engine_cases import LAYOUTS, assert_reduced, lay_out

from weightprint.engine import ring as engine_ring
from weightprint.engine.cpu import reduce_plan
from weightprint.engine.files import read_slot
from weightprint.engine.streams import Mark
from weightprint.plan import Slot
from weightprint_kernels.layout import ITEMSIZE, UINT8
from weightprint_kernels.reference import ReferenceBackend


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


def test_waiting_for_bytes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device waits for a reader that is slow, and not for one that was held up by the device."""
    delays: list[float] = []

    def slowly(slot: Slot, descriptor: int, buffer: UINT8) -> None:
        began = time.perf_counter()
        time.sleep(0.01)
        delays.append(time.perf_counter() - began)
        read_slot(slot, descriptor, buffer)

    monkeypatch.setattr(engine_ring, "read_slot", slowly)
    (laid,) = checkpoints(tmp_path, 1)
    plan = plan_of(laid, 400)
    with opened([plan], readers=1) as engine:
        carried_out(engine, [plan])
        assert len(delays) == len(plan) > 3
        assert sum(delays[1:]) / 2 < engine.ring.stalls.reader_starved < 10 * sum(delays) + 60


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
