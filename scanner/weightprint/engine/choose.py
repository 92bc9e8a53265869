"""Which engine carries out a scan's plans: that of the CPU, or that of a CUDA device."""

from __future__ import annotations

from weightprint.engine.cpu import CpuEngine
from weightprint.engine.protocol import Engine
from weightprint.engine.settings import read_settings
from weightprint.errors import DeviceError
from weightprint_kernels.select import DeviceUnavailable, select_backend


def open_engine(device: str) -> Engine:
    """The engine for ``device`` (auto, cpu or cuda); raises DeviceError E_DEVICE if it is not there."""
    settings = read_settings()
    try:
        backend, reason = select_backend(device)
    except DeviceUnavailable as error:
        raise DeviceError("E_DEVICE", str(error)) from None
    threads = settings.threads if backend.name == "numba" else 1
    return CpuEngine(backend, threads, f"{backend.name}: {reason}")
