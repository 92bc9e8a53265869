"""Kernels alone, on bytes that are where they compute, against the limit of the same run.

On the CPU the limit is looking at every 8 bytes of the same buffer with as many threads; on CUDA it is what the device
copies a second, counted by the bytes that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from weightprint.throughput.machine import interleaved, rate
from weightprint.throughput.reading import codes, read_words
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.compute import reduce
from weightprint_kernels.layout import (
    COLUMN_ENERGY,
    ITEMSIZE,
    NO_ENERGY,
    ROW_ENERGY,
    UINT8,
    chunk_rectangles,
    rectangle,
    tile_rectangles,
)

WORK = {"moments": NO_ENERGY, "row energies": ROW_ENERGY, "column energies": COLUMN_ENERGY}
"""What is asked of a matrix: q and k need moments, v row energies as well, o column energies."""
COLUMNS = 4096


@dataclass(frozen=True)
class KernelRate:
    """GB/s of one kernel, and of the limit beside it."""

    backend: str
    dtype: str
    work: str
    size: int
    threads: int
    gigabytes_per_second: float
    limit: float

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.gigabytes_per_second / self.limit


def measure_cpu(backend: Backend, dtype: str, size: int, threads: int, rounds: int = 5) -> list[KernelRate]:
    """Every kind of work on ``size`` bytes a thread."""
    buffers = [codes(size, dtype, seed) for seed in range(threads)]
    actions: dict[str, Callable[[UINT8], object]] = {"limit": lambda data: read_words()(_frozen(data))}
    for work, axis in WORK.items():
        actions[work] = partial(_reduce, backend, dtype, axis)
    with ThreadPoolExecutor(threads) as pool:
        whole = {name: partial(_on_all, pool, action, buffers) for name, action in actions.items()}
        interleaved(whole, 1)
        seconds = interleaved(whole, rounds)
    total = size * threads
    limit = rate(total, seconds["limit"])
    return [KernelRate(backend.name, dtype, work, size, threads, rate(total, seconds[work]), limit) for work in WORK]


def _on_all(pool: ThreadPoolExecutor, action: Callable[[UINT8], object], buffers: list[UINT8]) -> None:
    list(pool.map(action, buffers))


def _reduce(backend: Backend, dtype: str, axis: int, data: UINT8) -> None:
    reduce(backend, data, backend.place(data), _matrix(len(data), dtype, axis), dtype)


def _matrix(size: int, dtype: str, axis: int):  # type: ignore[no-untyped-def]
    stride = COLUMNS * ITEMSIZE[dtype]
    return rectangle(0, size // stride, COLUMNS, stride, axis)


def _frozen(data: UINT8) -> UINT8:
    view = data.view()
    view.flags.writeable = False
    return view


def measure_device(backend: DeviceBackend, dtype: str, size: int, rounds: int = 5) -> list[KernelRate]:
    """Moments and column energies of ``size`` resident bytes, timed by events; the limit is a copy on the device."""
    import torch

    buffer = torch.from_numpy(codes(size, dtype)).to(backend.device)
    target = torch.empty_like(buffer)
    table = _matrix(size, dtype, NO_ENERGY)
    chunks, tiles = chunk_rectangles(table, ITEMSIZE[dtype]), tile_rectangles(table, ITEMSIZE[dtype])
    actions: dict[str, Callable[[], object]] = {
        "limit": lambda: target.copy_(buffer),
        "moments": lambda: backend.moments_there(buffer, chunks, dtype),
        "column energies": lambda: backend.column_energies_there(buffer, tiles, dtype),
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            action()
            end.record()
            end.synchronize()
            if turn > 0:  # the first compiles
                seconds[name].append(begin.elapsed_time(end) / 1000)
    limit = rate(size, seconds["limit"])
    works = [name for name in actions if name != "limit"]
    return [KernelRate(backend.name, dtype, work, size, 1, rate(size, seconds[work]), limit) for work in works]


def largest_error(backend: Backend, dtype: str) -> float:
    """Largest relative error of the variance of a million weights against float64."""
    from weightprint_kernels.reference import ReferenceBackend

    data = codes(2**20 * ITEMSIZE[dtype], dtype)
    table = _matrix(len(data), dtype, NO_ENERGY)
    own = reduce(backend, data, backend.place(data), table, dtype).moments
    true = reduce(ReferenceBackend(), data, data, table, dtype).moments
    return float(np.abs(own[:, 2] / true[:, 2] - 1).max())
