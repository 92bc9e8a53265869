"""The order of work on a device: copies on one stream, kernels on another, and marks to wait for.

``HostStreams`` does the same on the CPU, where everything is done when the call returns, so that the engine of the
device runs in Triton's interpreter as it does on CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A point in the work of the device."""

    def synchronize(self) -> None:
        """Wait until the device has come there."""
        ...


class Streams(Protocol):
    """Two queues of work: what is copied in, and what is computed."""

    def enter_thread(self) -> None:
        """Make the device that of the calling thread. Every thread that calls the device begins with it."""
        ...

    def allocate_host(self, size: int) -> torch.Tensor:
        """Bytes on the host that the device can copy by itself, uint8 [size]."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy to the device; what is computed after it waits for it."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """Inside it kernels are queued behind the copies made so far."""
        ...

    def mark(self) -> Mark:
        """The end of what is queued for computing now."""
        ...

    def free_memory(self) -> None:
        """Give back what is kept of the device's memory for later."""
        ...


class CudaStreams:
    """Streams of one CUDA device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._kernels = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def enter_thread(self) -> None:
        """A thread begins on device 0, and a call there would take half a gigabyte of what may be another's device."""
        torch.cuda.set_device(self.device)

    def allocate_host(self, size: int) -> torch.Tensor:
        """Pinned memory, on the memory node of the calling thread."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """On the stream of copies; the stream of kernels waits for it."""
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        self._kernels.wait_stream(self._copies)

    def computing(self) -> AbstractContextManager[Any]:
        """The stream of kernels."""
        return torch.cuda.stream(self._kernels)

    def mark(self) -> Mark:
        """An event on the stream of kernels. Who waits for it sleeps: the processors are the readers'."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._kernels)
        return event

    def free_memory(self) -> None:
        """What torch's allocator keeps."""
        torch.cuda.empty_cache()


class HostStreams:
    """No streams: each call ends when its work is done."""

    def enter_thread(self) -> None:
        """Every thread is there."""

    def allocate_host(self, size: int) -> torch.Tensor:
        """Ordinary memory."""
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """A copy."""
        target.copy_(source)

    def computing(self) -> AbstractContextManager[Any]:
        """Nothing to enter."""
        return contextlib.nullcontext()

    def mark(self) -> Mark:
        """Everything is done."""
        return _Done()

    def free_memory(self) -> None:
        """Nothing is kept."""


class _Done:
    def synchronize(self) -> None:
        """Nothing to wait for."""


def streams_of(device: str) -> Streams:
    """The streams of ``device``, as torch names it."""
    return CudaStreams(device) if torch.device(device).type == "cuda" else HostStreams()


def never_free(tensor: torch.Tensor) -> None:
    """Keep a tensor to the end of the process. torch records an event when it frees pinned memory that was copied;
    on a device that failed this raises in a destructor, which ends the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(tensor))


def processors_near(device: str) -> frozenset[int]:
    """Processors of the memory node that the device is connected to; empty where the system does not tell."""
    if torch.device(device).type != "cuda":
        return frozenset()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        card: Any = torch.cuda.get_device_properties(device)
        address = f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
        node = int((Path("/sys/bus/pci/devices") / address / "numa_node").read_text())
        if node >= 0:
            return _listed(Path(f"/sys/devices/system/node/node{node}/cpulist").read_text())
    return frozenset()


def _listed(text: str) -> frozenset[int]:
    """The numbers of a list such as 0-3,8."""
    spans = [part.split("-") for part in text.strip().split(",") if part]
    return frozenset(number for span in spans for number in range(int(span[0]), int(span[-1]) + 1))
