"""What may be set about reading, by variables of the environment, and what the defaults are."""

from __future__ import annotations

import os
from dataclasses import dataclass

from weightprint.errors import UsageError
from weightprint_kernels.driver import driver_present

MOST_THREADS = 12
MAPPED_MIB = 192
"""What all threads map at once by default, or the ring holds. Fewer threads get larger slots, up to MOST_SLOT_MIB: for
what a slot costs beside its bytes (a mapping, a lock, a start), two threads took a third longer with 16 MiB and a
fifteenth with 64 (``WEIGHTPRINT_SLOT_MIB=16 python bench/scan.py``)."""
MOST_SLOT_MIB, LEAST_SLOT_MIB = 96, 4
DEVICE_SLOT_MIB = 16
"""Of a slot where there may be a device: a ring of twelve places, whose copies and kernels overlap."""
MOST_READERS = 8
"""Threads that fill the ring of a device: what a link of 50 GB/s takes at 7 GB/s a thread."""


@dataclass(frozen=True)
class Settings:
    """``threads`` read slots side by side and on the CPU reduce them, default one for each processor; ``readers`` fill
    the ring of a device, which has ``ring_slots`` places; a slot has ``slot_bytes``."""

    threads: int
    readers: int
    ring_slots: int
    slot_bytes: int


def read_settings() -> Settings:
    """The settings of the environment; raises UsageError E_USAGE."""
    threads = _whole("WEIGHTPRINT_THREADS", min(processors(), MOST_THREADS), 1, 256)
    most = DEVICE_SLOT_MIB if driver_present() else MOST_SLOT_MIB
    share = max(min(MAPPED_MIB // threads, most), LEAST_SLOT_MIB)
    slot_mib = _whole("WEIGHTPRINT_SLOT_MIB", share, LEAST_SLOT_MIB, 1024)
    return Settings(
        threads=threads,
        readers=_whole("WEIGHTPRINT_READERS", min(processors(), MOST_READERS), 1, 256),
        ring_slots=_whole("WEIGHTPRINT_RING_SLOTS", max(MAPPED_MIB // slot_mib, 3), 2, 1024),
        slot_bytes=slot_mib * 2**20,
    )


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise UsageError("E_USAGE", f"{name} is {text!r}; it must be a whole number from {least} to {most}")
    return int(text)
