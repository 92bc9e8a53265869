"""From files to the device: reader threads fill a ring of pinned buffers, in plan order, across checkpoints.

Each place of the ring is a buffer on the host and one on the device. A reader takes a free place, reads a slot into it
and hands it on; the place is free again when the kernels that read it are done. Memory is the ring, whatever is read,
and it is pinned once for the whole scan: pinning costs as much as reading.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch

from weightprint.engine.files import OpenFiles, read_slot
from weightprint.engine.streams import Streams, never_free
from weightprint.plan import Plan, Slot

ALIGNMENT = 16
"""Bytes keep their place modulo this, so that the widest loads stay possible on the device."""


@dataclass(frozen=True)
class Place:
    """One buffer of the ring, uint8 of a slot's bytes and ALIGNMENT at least, here and on the device."""

    host: torch.Tensor
    there: torch.Tensor


@dataclass(frozen=True)
class Filled:
    """A slot that was read: its bytes begin at ``start`` of the place."""

    slot: Slot
    place: Place
    start: int


@dataclass
class Stalls:
    """Seconds that one side waited for the other: the device for bytes (``reader_starved``), or the readers, their
    seconds added up, for a place to put them (``slot_starved``)."""

    reader_starved: float = 0.0
    slot_starved: float = 0.0


class Ring:
    """Places that go round between readers and the device.

    Readers get places in the order in which their slots will be launched: were a later slot served first, the places
    could all hold slots that wait for one without a place.
    """

    def __init__(self, streams: Streams, device: str, slots: int, slot_bytes: int, processors: frozenset[int]) -> None:
        self.slots = slots
        self.stalls = Stalls()
        size = (-(-slot_bytes // ALIGNMENT) + 1) * ALIGNMENT  # every place begins aligned
        with staying_on(processors):
            self._host = streams.allocate_host(slots * size)
        self.host_bytes = slots * size
        there = torch.empty((slots, size), dtype=torch.uint8, device=device)
        self._free = [Place(*both) for both in zip(self._host.view(slots, size), there, strict=True)]
        self._turn = 0
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: dict[int, threading.Condition] = {}

    def take(self, turn: int, wanted: Callable[[], bool]) -> Place | None:
        """A place for the reader whose turn is number ``turn``, when there is one; None if it is not ``wanted`` any
        more, or the ring is closed."""
        with self._lock:
            changed = self._waiting[turn] = threading.Condition(self._lock)
            since = perf_counter()
            changed.wait_for(lambda: self._closed or (self._turn == turn and (self._free or not wanted())))
            self.stalls.slot_starved += perf_counter() - since
            del self._waiting[turn]
            place = self._free.pop() if not self._closed and wanted() else None
            self._turn += 1
            self._wake()
            return place

    def give_back(self, place: Place) -> None:
        """The device no longer reads this place."""
        with self._lock:
            self._free.append(place)
            self._wake()

    def look_again(self) -> None:
        """What is wanted has changed."""
        with self._lock:
            self._wake()

    def close(self) -> None:
        """Wake every reader that waits for a place."""
        with self._lock:
            self._closed = True
            for changed in self._waiting.values():
                changed.notify()

    def abandon(self) -> None:
        """The device failed: see never_free."""
        never_free(self._host)

    def _wake(self) -> None:
        """Wake the reader whose turn it is, and no other: a full ring has all of them waiting."""
        if self._turn in self._waiting:
            self._waiting[self._turn].notify()


class Readers:
    """Threads that fill places, in the order in which slots are asked for."""

    def __init__(self, ring: Ring, threads: int, processors: frozenset[int]) -> None:
        self._ring = ring
        self._turns = itertools.count()
        self._pool = ThreadPoolExecutor(threads, "weightprint-reader", initializer=lambda: stay_on(processors))

    def read(self, plan: Plan, number: int, files: OpenFiles, wanted: Callable[[], bool]) -> Future[Filled | None]:
        """Queue the reading of a slot; None comes where it is not ``wanted`` any more when its turn comes."""
        return self._pool.submit(self._read, next(self._turns), plan.slot(number), files, wanted)

    def close(self) -> None:
        """Give up what is queued."""
        self._ring.close()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, turn: int, slot: Slot, files: OpenFiles, wanted: Callable[[], bool]) -> Filled | None:
        place = self._ring.take(turn, wanted)
        if place is None:
            files.done(slot.path)
            return None
        try:
            start = slot.offset % ALIGNMENT
            with files.using(slot.path) as descriptor:
                read_slot(slot, descriptor, place.host[start : start + slot.length].numpy())
        except BaseException:
            self._ring.give_back(place)
            raise
        return Filled(slot, place, start)


@contextlib.contextmanager
def staying_on(processors: frozenset[int]) -> Iterator[None]:
    """Keep the calling thread on these processors for a while: memory comes from where it is first touched."""
    before = os.sched_getaffinity(0) if processors and hasattr(os, "sched_getaffinity") else frozenset()
    stay_on(processors)
    try:
        yield
    finally:
        if before:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, before)


def stay_on(processors: frozenset[int]) -> None:
    """Keep the calling thread on these processors, as far as it may run there."""
    if processors and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, (processors & os.sched_getaffinity(0)) or os.sched_getaffinity(0))
