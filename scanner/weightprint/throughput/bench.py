"""``weightprint bench``: kernels and reading of this machine, and what a night could scan at that rate."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from weightprint.discover import discover
from weightprint.engine.choose import open_engine
from weightprint.engine.settings import read_settings
from weightprint.errors import WeightprintError
from weightprint.fingerprint import read_structure
from weightprint.gather import nothing_found
from weightprint.plan import Plan
from weightprint.throughput.kernels import KernelRate, measure_cpu, measure_device
from weightprint.throughput.machine import interleaved, machine, rate
from weightprint.throughput.reading import evict, read_everything, reduce_everything, resident_share, spans_of
from weightprint.throughput.synthetic import Shape, write_llama
from weightprint_kernels.backend import DeviceBackend
from weightprint_kernels.select import select_backend

KERNEL_BYTES = 64 * 2**20
DEVICE_BYTES = 512 * 2**20
OWN_LAYERS = 4
MOST_BYTES = 4 * 10**9
"""Of the checkpoints below PATH so much attention is read at most."""
NIGHT_HOURS = 8
EIGHT_BILLION = 2.7e9
"""Attention bytes of a checkpoint of 8 billion parameters in bf16, such as Llama 3.1 8B."""


@dataclass(frozen=True)
class Reading:
    """Reading checkpoints through the engine: as they lay there, again out of the page cache, and the limit of that."""

    path: str
    checkpoints: int
    size: int
    resident: float
    first: float
    again: float
    limit: float
    engine: str


@dataclass(frozen=True)
class Throughput:
    """What ``weightprint bench`` found; rates in GB/s."""

    kernels: tuple[KernelRate, ...]
    reading: Reading
    machine: dict[str, Any]
    own: bool

    @property
    def night_rate(self) -> float:
        """As what lay there was read; a checkpoint that was just written tells only of the page cache."""
        return self.reading.again if self.own else self.reading.first

    @property
    def night_bytes(self) -> float:
        """Attention bytes of NIGHT_HOURS at that rate."""
        return self.night_rate * 1e9 * 3600 * NIGHT_HOURS


def measure(path: Path | None, device: str) -> Throughput:
    """Measure; without a path on a checkpoint of its own in the directory for temporary files."""
    with _checkpoints(path) as (folder, plans):
        kernels = measure_kernels(device)
        reading = measure_reading(folder, plans, device)
    return Throughput(tuple(kernels), reading, machine(), own=path is None)


def measure_kernels(device: str) -> list[KernelRate]:
    """Kernels of the device that a scan would use, bf16 and one 8-bit format."""
    backend, _ = select_backend(device)
    if backend.device != "cpu":
        there = cast(DeviceBackend, backend)
        return [found for dtype in ("bf16", "f8_e4m3") for found in measure_device(there, dtype, DEVICE_BYTES)]
    threads = sorted({1, read_settings().threads if backend.name == "numba" else 1})
    cases = itertools.product(("bf16", "f8_e4m3"), threads)
    return [found for dtype, count in cases for found in measure_cpu(backend, dtype, KERNEL_BYTES, count)]


def measure_reading(folder: Path, plans: Sequence[Plan], device: str) -> Reading:
    """Read the plans once as they lie there, then in turn with the limit."""
    size = sum(plan.read for plan in plans)
    resident = resident_share(plans)
    with open_engine(device) as engine:
        _warm_up(engine)
        actions = {"engine": lambda: reduce_everything(plans, engine)}
        first = interleaved(actions, 1)["engine"]
        threads, spans = read_settings().threads, spans_of(plans)
        seconds = interleaved({**actions, "limit": lambda: read_everything(spans, threads)}, 3)
        if resident < 1:
            evict(plans)  # or the next run would take the page cache for the storage
        return Reading(
            path=str(folder),
            checkpoints=len(plans),
            size=size,
            resident=resident,
            first=rate(size, first),
            again=rate(size, seconds["engine"]),
            limit=rate(size, seconds["limit"]),
            engine=engine.description,
        )


def _warm_up(engine: Any) -> None:
    """Compile, or load what is compiled, before the clock runs."""
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), Shape(64, 64, 64), 1)
        reduce_everything([plan for _, plan in _plans(Path(folder))], engine)


@contextmanager
def _checkpoints(path: Path | None) -> Iterator[tuple[Path, list[Plan]]]:
    """The plans of checkpoints below ``path``, up to MOST_BYTES; raises UsageError E_NO_CHECKPOINT."""
    with tempfile.TemporaryDirectory() as own:
        folder = path
        if folder is None:
            folder = Path(own) / "checkpoint"
            folder.mkdir()
            write_llama(folder, Shape(), OWN_LAYERS)
        chosen: list[Plan] = []
        for _, plan in _plans(folder):
            if chosen and sum(other.read for other in (*chosen, plan)) > MOST_BYTES:
                break
            chosen.append(plan)
        if not chosen:
            raise nothing_found([folder])
        yield folder, chosen


def _plans(folder: Path) -> Iterator[tuple[str, Plan]]:
    """Name and plan of each checkpoint that a scan would read something of."""
    for checkpoint in discover([folder]):
        try:
            plan = read_structure(checkpoint).plan
        except WeightprintError:
            continue
        if len(plan):
            yield checkpoint.name, plan
