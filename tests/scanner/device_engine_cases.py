"""The engine of the device on the CPU, with faults at every call."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from engine_cases import Files, Laid, matrix

from weightprint.engine import device as engine_device
from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import CpuEngine
from weightprint.engine.device import DeviceEngine, RingSize
from weightprint.engine.ring import Place, Ring
from weightprint.engine.streams import HostStreams, Mark, Streams
from weightprint.plan import Plan, plan_reads
from weightprint_kernels.backend import DeviceBackend
from weightprint_kernels.layout import Chunks, Tiles
from weightprint_kernels.reference import ReferenceBackend
from weightprint_kernels.torch_backend import TorchBackend

ON_DEVICE, ON_CPU = "torch-cpu", "reference"
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory is left")
FAILURE = RuntimeError("the launch failed")
CALLS = ("copy", "moments_there", "column_energies_there", "mark", "synchronize")


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
