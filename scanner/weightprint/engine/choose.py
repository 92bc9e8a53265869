"""Which engine carries out a scan's plans: that of the CPU, or that of a CUDA device."""

from __future__ import annotations

from typing import cast

from weightprint.engine.cpu import CpuEngine
from weightprint.engine.protocol import Engine
from weightprint.engine.settings import Settings, read_settings
from weightprint.errors import DeviceError
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.select import DeviceUnavailable, select_backend


def open_engine(device: str) -> Engine:
    """The engine for ``device`` (auto, cpu or cuda); raises DeviceError E_DEVICE if it is not there, UsageError.

    A device without the memory for the ring leaves the scan to the CPU, and the description says so.
    """
    settings = read_settings()
    backend, reason = backend_for(device)
    if backend.device == "cpu":
        return cpu_engine(settings, backend, reason)
    from weightprint.engine.device import DeviceEngine, RingSize

    size = RingSize(settings.ring_slots, settings.slot_bytes, settings.readers)
    description = f"{backend.name}: {reason}"
    try:
        return DeviceEngine(cast(DeviceBackend, backend), size, lambda: cpu_engine(settings), description)
    except RuntimeError as error:
        return cpu_engine(settings, reason=f"{reason} could not be used ({' '.join(str(error).split())[:200]})")


def backend_for(device: str) -> tuple[Backend, str]:
    """What computes on ``device``, and why; raises DeviceError E_DEVICE if it is not there."""
    try:
        return select_backend(device)
    except DeviceUnavailable as error:
        raise DeviceError("E_DEVICE", str(error)) from None


def cpu_engine(settings: Settings, backend: Backend | None = None, reason: str = "") -> CpuEngine:
    """The engine of the CPU. torch's own threads make one of ours enough."""
    chosen = backend or select_backend("cpu")[0]
    threads = settings.threads if chosen.name == "numba" else 1
    return CpuEngine(chosen, threads, f"{chosen.name}: {reason}")
