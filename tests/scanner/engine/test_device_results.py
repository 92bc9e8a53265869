"""What the engine of the device gives back: exact where float32 is not, in parts, and nothing once it is left."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from device_engine_cases import ON_DEVICE, Fault, FaultyBackend, assert_soon, carried_out, checkpoints, opened, plan_of
from engine_cases import Files, Laid, assert_reduced, lay_out, matrix

from weightprint.engine import device as engine_device
from weightprint.engine.device import DeviceEngine, PendingOnDevice
from weightprint.engine.streams import Mark
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot
from weightprint_kernels.layout import FLOAT64, Reduced


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
    code = "import pathlib, sys, test_device_results; test_device_results.interpreted(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
