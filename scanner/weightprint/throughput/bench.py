"""``weightprint bench``: kernels and reading of this machine, and what a night could scan at that rate."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from weightprint.discover import discover
from weightprint.engine.choose import backend_for, open_engine
from weightprint.engine.settings import read_settings
from weightprint.errors import CheckpointError, WeightprintError
from weightprint.fingerprint import read_structure
from weightprint.gather import nothing_found
from weightprint.plan import Plan
from weightprint.throughput.kernels import KernelRate, measure_cpu, measure_device
from weightprint.throughput.machine import interleaved, machine, rate
from weightprint.throughput.reading import evict, not_resident, read_everything, reduce_everything, spans_of
from weightprint.throughput.synthetic import Shape, write_llama
from weightprint_kernels.backend import DeviceBackend

KERNEL_BYTES = 64 * 2**20
DEVICE_BYTES = 512 * 2**20
OWN_SHAPE, OWN_LAYERS = Shape(feed_forward=1024), 4
MOST_BYTES = 4 * 10**9
"""Of the checkpoints below PATH so much attention is read at most."""
FEWEST_BYTES = 2 * 10**8
"""What is read in less than some hundredths of a second says nothing of a night."""
MOSTLY_STORAGE = 0.1
"""Share in the page cache below which a reading is one of the storage."""
NIGHT_HOURS = 8
EIGHT_BILLION = 2.7e9
"""Attention bytes of a checkpoint of 8 billion parameters in bf16, such as Llama 3.1 8B."""


Say = Callable[[str], None]
"""Takes a line about what is being done."""


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
    def night_source(self) -> str | None:
        """Where the bytes of :attr:`night_rate` came from; None where too few were read to tell."""
        if self.reading.size < FEWEST_BYTES:
            return None
        return "storage" if self.reading.resident < MOSTLY_STORAGE else "page cache"

    @property
    def night_rate(self) -> float:
        """GB/s of the first reading out of the storage, or of a later one where the page cache held what was read."""
        return self.reading.first if self.night_source == "storage" else self.reading.again

    @property
    def night_bytes(self) -> float:
        """Attention bytes of NIGHT_HOURS at that rate."""
        return self.night_rate * 1e9 * 3600 * NIGHT_HOURS


def measure(path: Path | None, device: str, say: Say) -> Throughput:
    """Measure; without a path on a checkpoint of its own in the directory for temporary files. ``say`` is told what
    is being done. Raises UsageError, DeviceError, CheckpointError."""
    read_settings()  # which may be wrong, and then no checkpoint is
    backend_for(device)
    say("making a checkpoint to read" if path is None else f"reading headers below {path}")
    with _checkpoints(path, say) as (folder, plans):
        say("measuring kernels, which are compiled if they are not yet")
        kernels = measure_kernels(device)
        say("reading")
        reading = measure_reading(folder, plans, device)
    return Throughput(tuple(kernels), reading, machine(), own=path is None)


def measure_kernels(device: str) -> list[KernelRate]:
    """Kernels of the device that a scan would use, bf16 and one 8-bit format."""
    backend, _ = backend_for(device)
    if backend.device != "cpu":
        there = cast(DeviceBackend, backend)
        return [found for dtype in ("bf16", "f8_e4m3") for found in measure_device(there, dtype, DEVICE_BYTES)]
    threads = sorted({1, read_settings().threads if backend.name == "numba" else 1})
    cases = itertools.product(("bf16", "f8_e4m3"), threads)
    return [found for dtype, count in cases for found in measure_cpu(backend, dtype, KERNEL_BYTES, count)]


def measure_reading(folder: Path, plans: Sequence[Plan], device: str) -> Reading:
    """Read the plans once as they lie there, then in turn with the limit."""
    size = sum(plan.read for plan in plans)
    spans = spans_of(plans)
    elsewhere = not_resident(spans)
    with open_engine(device) as engine:
        _warm_up(engine)
        actions = {"engine": lambda: reduce_everything(plans, engine)}
        first = interleaved(actions, 1)["engine"]
        threads = read_settings().threads
        seconds = interleaved({**actions, "limit": lambda: read_everything(spans, threads)}, 3)
        evict(elsewhere)  # or the next run would take the page cache for the storage
        return Reading(
            path=str(folder),
            checkpoints=len(plans),
            size=size,
            resident=1 - len(elsewhere) / len(spans),
            first=rate(size, first),
            again=rate(size, seconds["engine"]),
            limit=rate(size, seconds["limit"]),
            engine=engine.description,
        )


def _warm_up(engine: Any) -> None:
    """Compile, or load what is compiled, before the clock runs."""
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), Shape(64, 64, 64), 1)
        reduce_everything(list(_plans(Path(folder), [])), engine)


@contextmanager
def _checkpoints(path: Path | None, say: Say) -> Iterator[tuple[Path, list[Plan]]]:
    """The plans of checkpoints below ``path``, up to MOST_BYTES; raises UsageError E_NO_CHECKPOINT, or what is wrong
    with the first of them where none can be read."""
    with tempfile.TemporaryDirectory() as own:
        folder = path
        if folder is None:
            folder = Path(own) / "checkpoint"
            folder.mkdir()
            write_llama(folder, OWN_SHAPE, OWN_LAYERS)
        chosen: list[Plan] = []
        refused: list[WeightprintError] = []
        for plan in _plans(folder, refused):
            if chosen and sum(other.read for other in (*chosen, plan)) > MOST_BYTES:
                break
            chosen.append(plan)
        for error in refused if chosen else ():
            say(f"left out: {error.line()}")
        if not chosen:
            raise refused[0] if refused else nothing_found([folder])
        yield folder, chosen


def _plans(folder: Path, refused: list[WeightprintError]) -> Iterator[Plan]:
    """The plans of checkpoints that a scan would read something of; what is wrong with others goes to ``refused``."""
    for checkpoint in discover([folder]):
        try:
            structure = read_structure(checkpoint)
        except WeightprintError as error:
            refused.append(error)
            continue
        if len(structure.plan):
            yield structure.plan
        else:
            refused += [CheckpointError(n.code, n.reason, path=n.path, tensor=n.tensor) for n in structure.notices]
