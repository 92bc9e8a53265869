"""The machine and the versions that a measurement belongs to."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from weightprint.engine.settings import processors

PACKAGES = ("weightprint", "numpy", "numba", "torch", "triton", "safetensors")


def machine() -> dict[str, Any]:
    """Processor, memory, load, GPU and versions; what the system does not tell is None."""
    return {
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "processors": processors(),
        "memory_bytes": _kibibytes("/proc/meminfo", "MemTotal"),
        "gpu": gpu_name(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def gpu_name() -> str | None:
    """The first CUDA device, if torch has been imported and finds one."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name(0)) if torch is not None and torch.cuda.is_available() else None


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round; all take turns, so that what disturbs the machine disturbs them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            started = perf_counter()
            action()
            seconds[name].append(perf_counter() - started)
    return seconds


def rate(size: int, seconds: list[float]) -> float:
    """GB/s of the median round."""
    return size / median(seconds) / 1e9


def _line_of(file: str, key: str) -> str | None:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _kibibytes(file: str, key: str) -> int | None:
    text = _line_of(file, key)
    return int(text.split()[0]) * 1024 if text else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
