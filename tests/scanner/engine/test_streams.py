"""The order of work on a device: what is called on which stream, and which processors are near a card."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weightprint.engine import streams as engine_streams
from weightprint.engine.streams import CudaStreams, HostStreams, Mark, _listed, never_free, processors_near, streams_of


class FakeCuda:
    """What torch.cuda is asked for, in order; a stream is named by the order in which it was made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[object, ...]] = []
        self.streams: list[FakeStream] = []
        self.current: FakeStream | None = None
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self, device))
        patch.setattr(torch.cuda, "Event", lambda **options: FakeEvent(self, options))
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "set_device", lambda device: self.done.append(("device", str(device))))
        patch.setattr(torch.cuda, "empty_cache", lambda: self.done.append(("empty",)))

    @contextmanager
    def on(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class FakeStream:
    def __init__(self, cuda: FakeCuda, device: object) -> None:
        self.cuda, self.device, self.number = cuda, str(device), len(cuda.streams)
        cuda.streams.append(self)

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.done.append(("wait", self.number, other.number))


class FakeEvent:
    def __init__(self, cuda: FakeCuda, options: dict[str, object]) -> None:
        self.cuda, self.options = cuda, options

    def record(self, stream: FakeStream) -> None:
        self.cuda.done.append(("record", stream.number, self.options))

    def synchronize(self) -> None:
        self.cuda.done.append(("synchronize",))


class Target:
    """The device's side of a copy."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def copy_(self, source: object, non_blocking: bool = False) -> None:
        stream = self.cuda.current
        assert stream is not None
        self.cuda.done.append(("copy", stream.number, source, non_blocking))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_streams_are_those_of_the_device(cuda: FakeCuda) -> None:
    streams = streams_of("cuda:1")
    assert isinstance(streams, CudaStreams)
    assert [stream.device for stream in cuda.streams] == ["cuda:1", "cuda:1"]
    assert isinstance(streams_of("cpu"), HostStreams)


def test_kernels_wait_for_the_copy(cuda: FakeCuda) -> None:
    """Copies on a stream of their own, without waiting here; what is computed after one, on the other, waits for it."""
    target: Any = Target(cuda)
    source: Any = "source"
    streams = CudaStreams("cuda:0")
    streams.copy(target, source)
    ((_, copies, *copied), (_, waiting, awaited)) = cuda.done
    assert copied == ["source", True]
    assert (awaited, waiting) == (copies, 1 - int(str(copies)))
    with streams.computing():
        assert cuda.current is not None
        assert cuda.current.number == waiting
    assert cuda.current is None


def test_a_mark_is_the_end_of_the_kernels(cuda: FakeCuda) -> None:
    """Who waits for it leaves the processor to others."""
    streams = CudaStreams("cuda:0")
    mark: Mark = streams.mark()
    with streams.computing():
        assert cuda.current is not None
        assert cuda.done == [("record", cuda.current.number, {"blocking": True})]
    mark.synchronize()
    assert cuda.done[1:] == [("synchronize",)]


def test_a_thread_enters_its_device(cuda: FakeCuda) -> None:
    """Not device 0, where each of eight processes would take memory."""
    streams = CudaStreams("cuda:1")
    streams.enter_thread()
    streams.free_memory()
    assert cuda.done == [("device", "cuda:1"), ("empty",)]


def test_the_host_does_everything_at_once() -> None:
    streams = HostStreams()
    source, target = streams.allocate_host(5), torch.zeros(5, dtype=torch.uint8)
    assert (source.dtype, tuple(source.shape)) == (torch.uint8, (5,))
    source.fill_(7)
    streams.enter_thread()
    streams.copy(target, source)
    with streams.computing():
        assert target.tolist() == [7] * 5
    streams.mark().synchronize()
    streams.free_memory()


def test_never_free_keeps_a_tensor() -> None:
    tensor = torch.zeros(1)
    before = sys.getrefcount(tensor)
    never_free(tensor)
    assert sys.getrefcount(tensor) == before + 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("5\n", {5}),
        ("0-1,4-5,12", {0, 1, 4, 5, 12}),
        ("7-7", {7}),
        ("\n", set()),
        ("", set()),
    ],
)
def test_lists_of_processors(text: str, numbers: set[int]) -> None:
    assert _listed(text) == numbers


@pytest.mark.parametrize(
    ("node", "processors", "near"),
    [("1\n", "4-6,9\n", {4, 5, 6, 9}), ("-1\n", "0-3\n", set()), (None, "0-3\n", set()), ("1\n", None, set())],
    ids=["told", "no-node", "no-card", "no-list"],
)
def test_processors_near_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str | None, processors: str | None, near: set[int]
) -> None:
    """As /sys has it of the card's place on the bus; none where it has nothing."""
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: {"cuda:1": SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=2)}[device],
    )
    monkeypatch.setattr(engine_streams, "Path", lambda path: tmp_path / path.lstrip("/"))
    for path, text in (
        ("sys/bus/pci/devices/0000:c1:02.0/numa_node", node),
        ("sys/devices/system/node/node1/cpulist", processors),
    ):
        if text is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(text)
    assert processors_near("cuda:1") == near


def test_no_processors_are_near_the_host_or_a_card_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert processors_near("cpu") == frozenset()
    assert processors_near("cuda:0") == frozenset()
