"""Reading checkpoints against the limit of the same run: mapped anew, every 8 bytes looked at, by as many threads.

The limit does nothing with the bytes. It maps each file whole, touches what the plans select, and unmaps it, which the
engine has to do too.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from weightprint.engine.collect import Reduction
from weightprint.engine.files import OpenFiles, is_resident, read_slot
from weightprint.engine.protocol import Engine
from weightprint.plan import Plan, Slot
from weightprint_kernels.layout import UINT8

Span = tuple[Path, int, int]
"""File, first byte and number of bytes."""


def spans_of(plans: Sequence[Plan]) -> list[Span]:
    """What the plans read, slot by slot."""
    return [(slot.path, slot.offset, slot.length) for plan in plans for slot in plan.slots]


def read_everything(spans: Sequence[Span], threads: int) -> None:
    """Look at every 8 bytes of ``spans``, through a fresh mapping of each file."""
    with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        maps = {path: _map(path, stack) for path in {path: None for path, _, _ in spans}}

        def look(span: Span) -> None:
            path, offset, length = span
            read_words()(np.frombuffer(maps[path], np.uint8)[offset : offset + length // 8 * 8])

        list(pool.map(look, spans))


def copy_everything(plans: Sequence[Plan], threads: int) -> None:
    """Read every slot of the plans into memory, which is what comes before a copy to a device."""
    largest = max(int(plan.length.max()) for plan in plans)
    own = threading.local()

    def copy(files: OpenFiles, slot: Slot) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = np.ones(largest, np.uint8)
        with files.using(slot.path) as descriptor:
            read_slot(slot, descriptor, own.buffer[: slot.length])

    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(copy, files, slot) for plan in plans for files in [OpenFiles(plan)] for slot in plan.slots]
        for job in jobs:
            job.result()


@functools.cache
def read_words() -> Callable[[UINT8], object]:
    """Looks at every 8 bytes and does nothing with them; numpy where there is no numba."""
    if importlib.util.find_spec("numba") is None:
        return lambda data: np.bitwise_xor.reduce(data.view(np.uint64))
    from weightprint_kernels import numba_kernels

    return numba_kernels.read_words


def _map(path: Path, stack: ExitStack) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return stack.enter_context(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))


def reduce_everything(plans: Sequence[Plan], engine: Engine) -> list[Reduction]:
    """Carry out the plans, all in flight at once."""
    return [pending.result() for pending in [engine.submit(plan) for plan in plans]]


def resident_share(plans: Sequence[Plan]) -> float:
    """Which share of the plans' slots is in the page cache, by samples."""
    found = []
    for plan in plans:
        for slot in plan.slots:
            descriptor = os.open(slot.path, os.O_RDONLY)
            try:
                found.append(is_resident(descriptor, slot.offset, slot.length))
            finally:
                os.close(descriptor)
    return sum(found) / max(len(found), 1)


def evict(plans: Sequence[Plan]) -> None:
    """Drop what the plans read from the page cache, as far as the system does it."""
    for path in {path for plan in plans for path in plan.paths}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def codes(size: int, dtype: str, seed: int = 0) -> UINT8:
    """``size`` bytes of weights of a format, normal with standard deviation 0.02 (1.0 for 8 bits)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(min(size, 2**22), dtype=np.float32)
    if dtype == "f32":
        raw = (values * np.float32(0.02)).view(np.uint8)
    elif dtype == "bf16":
        raw = ((values * np.float32(0.02)).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    elif dtype == "f16":
        raw = (values * np.float32(0.02)).astype(np.float16).view(np.uint8)
    else:
        # The upper byte of a binary16 is E5M2, and for these values within E4M3's range as well.
        raw = (values.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8)
    return np.resize(raw, size)
