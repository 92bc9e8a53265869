"""Reading checkpoints against the limit of the same run: mapped anew, every 8 bytes looked at, by as many threads.

The limit does nothing with the bytes. It maps each file whole, touches what the plans select, and unmaps it, which the
engine has to do too.
"""

from __future__ import annotations

import contextlib
import functools
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
from weightprint.engine.guard import installed_guard
from weightprint.engine.protocol import Engine
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot
from weightprint_kernels.layout import UINT8
from weightprint_kernels.select import numba_refusal

Span = tuple[Path, int, int]
"""File, first byte and number of bytes."""


def spans_of(plans: Sequence[Plan]) -> list[Span]:
    """What the plans read, slot by slot."""
    return [(slot.path, slot.offset, slot.length) for plan in plans for slot in plan.slots]


def read_everything(spans: Sequence[Span], threads: int) -> None:
    """Look at every 8 bytes of ``spans``, through a fresh mapping of each file; raises CheckpointError where a file
    became shorter."""
    with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        maps = {path: _mapped(path, stack) for path in {path: None for path, _, _ in spans}}

        def look(span: Span) -> None:
            path, offset, length = span
            if offset + length > len(maps[path][0]):
                raise _shorter(path)
            read_words()(maps[path][0][offset : offset + length // 8 * 8])

        list(pool.map(look, spans))
        for path, (_, page_was_missing) in maps.items():
            if page_was_missing():
                raise _shorter(path)
        maps.clear()  # the arrays go before their mappings


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
    if numba_refusal() is not None:
        return lambda data: np.bitwise_xor.reduce(data.view(np.uint64))
    from weightprint_kernels import numba_kernels

    return numba_kernels.read_words


def _mapped(path: Path, stack: ExitStack) -> tuple[UINT8, Callable[[], bool]]:
    """A whole file, and whether a page of it was missing."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise _shorter(path)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stack.callback(_close, mapping)
    data = np.frombuffer(mapping, np.uint8)
    guard = installed_guard()
    if guard is None:
        return data, lambda: False
    pages = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
    return data, stack.enter_context(guard.watch(data.ctypes.data, pages))


def _close(mapping: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # an exception that is on its way holds the array: it goes with it
        mapping.close()


def _shorter(path: Path) -> CheckpointError:
    return CheckpointError("E_CHANGED", "became shorter while it was read; measure again", path=path)


def reduce_everything(plans: Sequence[Plan], engine: Engine) -> list[Reduction]:
    """Carry out the plans, all in flight at once."""
    return [pending.result() for pending in [engine.submit(plan) for plan in plans]]


def not_resident(spans: Sequence[Span]) -> list[Span]:
    """Those that are not in the page cache, by samples."""
    found = []
    for path, offset, length in spans:
        with path.open("rb") as file:
            if not is_resident(file.fileno(), offset, length):
                found.append((path, offset, length))
    return found


def evict(spans: Sequence[Span]) -> None:
    """Drop ``spans`` from the page cache, as far as the system does it."""
    for path, offset, length in spans if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


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
