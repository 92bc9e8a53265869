"""The engine of a device: readers fill a ring, copies and kernels overlap, and results come back once a checkpoint.

One thread launches, in plan order, whatever is read: it queues a slot's copy and its kernels, and gives the slot's
place back to the readers once the device is through with it. The plans of several checkpoints run into each other, so
the ring never drains between them. Rows and sums stay on the device until a checkpoint ends, or until they grow to
RESULT_BYTES; another thread merges them. What float32 could not hold is read again and reduced on the CPU.

Where the device fails, or has no memory left, the checkpoint is done again on the CPU, and the description of the
engine says so; after any other failure than missing memory the rest of the scan stays there.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch

from weightprint.engine.collect import Collector, Reduction
from weightprint.engine.cpu import CpuEngine
from weightprint.engine.files import OpenFiles, bytes_of
from weightprint.engine.protocol import Pending
from weightprint.engine.ring import Filled, Place, Readers, Ring
from weightprint.engine.streams import Mark, processors_near, streams_of
from weightprint.errors import CheckpointError
from weightprint.plan import Batch, Plan, Slot
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.compute import chosen, reduce, reduced, trusted_rows, trusted_tiles
from weightprint_kernels.layout import (
    COLUMN_ENERGY,
    FLOAT32,
    ITEMSIZE,
    ROW_FIELDS,
    TILE_COLUMNS,
    Chunks,
    Rectangles,
    Reduced,
    Tiles,
    chunk_rectangles,
    tile_rectangles,
)

RESULT_BYTES = 64 * 2**20
"""Rows and sums that may gather on the device before they are copied to the host."""
PARTS = 4
"""Of results that may wait on the device to be merged: one thread does that, and reads again what float32 lost."""


@dataclass(frozen=True)
class RingSize:
    """``slots`` places of ``slot_bytes`` bytes, which ``readers`` threads fill."""

    slots: int
    slot_bytes: int
    readers: int


@dataclass(frozen=True)
class _Launched:
    """A slot whose results are on the device: for each batch the rows [chunks, 8] and the sums [tiles, TILE_COLUMNS],
    float32; or that could not be read, or was not."""

    slot: Slot | None
    results: tuple[torch.Tensor, ...] = ()
    error: CheckpointError | None = None


class DeviceEngine:
    """Carries out plans on the device of ``backend``. Use it as a context: leaving it gives up what is not done."""

    def __init__(
        self, backend: DeviceBackend, size: RingSize, on_cpu: Callable[[], CpuEngine], description: str = ""
    ) -> None:
        self.backend = backend
        self.streams = streams_of(backend.device)
        near = processors_near(backend.device)
        self.ring = Ring(self.streams, backend.device, size.slots, size.slot_bytes, near)
        self.readers = Readers(self.ring, size.readers, near)
        self._on_cpu = on_cpu
        self._cpu: CpuEngine | None = None
        self._cpu_lock = threading.Lock()
        self._description = description
        self._redone: list[str] = []
        self._broken: Exception | None = None
        self._left = False
        self._busy: deque[tuple[Mark, Place]] = deque()
        self._queue: queue.SimpleQueue[PendingOnDevice | None] = queue.SimpleQueue()
        self._merger = ThreadPoolExecutor(1, "weightprint-merger")
        self._parts = threading.Semaphore(PARTS)
        self._launcher = threading.Thread(target=self._launch_plans, name="weightprint-launcher", daemon=True)
        self._launcher.start()

    def __enter__(self) -> DeviceEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._left = True
        self._queue.put(None)
        self.readers.close()
        self._launcher.join()
        self._merger.shutdown(cancel_futures=True)
        if self._cpu is not None:
            self._cpu.__exit__(*exception)

    @property
    def description(self) -> str:
        """What computes, and why; how many checkpoints had to be redone on the CPU, and why the first of them."""
        if not self._redone:
            return self._description
        number = len(self._redone)
        redone = f"{number} checkpoint{'s were' if number > 1 else ' was'} redone on the CPU ({self._redone[0]})"
        return f"{self._description}; {redone}"

    def submit(self, plan: Plan) -> Pending:
        """Queue the slots of ``plan`` behind those that wait already."""
        pending = PendingOnDevice(plan, self)
        self._queue.put(pending)
        return pending

    def redo(self, plan: Plan, error: Exception) -> Reduction:
        """Carry out a plan on the CPU that the device failed at; raises CancelledError where the engine was left."""
        self.require_open()
        self._note(error)
        self._redone.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        return self._cpu_engine().submit(plan).result()

    def reduce_on_cpu(self, slot: Slot, plan: Plan) -> list[Reduced]:
        """Read one slot again and reduce it on the CPU; raises CheckpointError."""
        backend: Backend = self._cpu_engine().backend
        with (
            contextlib.closing(OpenFiles(plan)) as files,
            files.using(slot.path) as descriptor,
            bytes_of(slot, descriptor) as data,
        ):
            buffer = backend.place(data)
            results = [reduce(backend, data, buffer, batch.rectangles, batch.dtype) for batch in slot.batches]
            del buffer, data
        return results

    def require_open(self) -> None:
        """Raises CancelledError where the engine was left."""
        if self._left:
            raise CancelledError

    def _cpu_engine(self) -> CpuEngine:
        with self._cpu_lock:
            if self._cpu is None:
                self._cpu = self._on_cpu()
            return self._cpu

    def _launch_plans(self) -> None:
        """The launching thread."""
        while (pending := self._queue.get()) is not None:
            try:
                self.streams.enter_thread()
                self._launch_plan(pending)
            except Exception as error:  # noqa: BLE001  whatever a driver raises: the CPU can still do it
                # Its traceback would hold the results gathered so far, which are memory of the device.
                pending.give_up(error.with_traceback(None))
                self._recover(error)
        self._drain()

    def _launch_plan(self, pending: PendingOnDevice) -> None:
        gathered: list[_Launched] = []
        size = 0
        while pending.reads:
            self.require_open()
            if self._broken is not None:
                raise self._broken
            while self._busy and not pending.reads[0].done():
                self._retire()
            launched = self._launch(pending.reads.popleft())
            gathered.append(launched)
            size += sum(result.nbytes for result in launched.results)
            if size > RESULT_BYTES:
                self._hand_over(pending, gathered)
                gathered, size = [], 0
        self._hand_over(pending, gathered)
        pending.launched.set()

    def _launch(self, read: Future[Filled | None]) -> _Launched:
        """Queue the copy and the kernels of one slot."""
        since = perf_counter()
        try:
            filled = read.result()
        except CheckpointError as error:
            return _Launched(None, error=error)
        finally:
            self.ring.stalls.reader_starved += perf_counter() - since
        if filled is None:
            return _Launched(None)
        place, span = filled.place, slice(filled.start, filled.start + filled.slot.length)
        try:
            self.streams.copy(place.there[span], place.host[span])
            results: list[torch.Tensor] = []
            with self.streams.computing():
                for batch in filled.slot.batches:
                    results += launched_kernels(self.backend, place.there, filled.start, batch)
        finally:
            self._keep_until_done(place)
        if len(self._busy) > self.ring.slots // 2:
            self._retire()
        return _Launched(filled.slot, tuple(results))

    def _keep_until_done(self, place: Place) -> None:
        """Give the place back when all that is queued now is done; at once where nothing can be queued any more."""
        try:
            mark = self.streams.mark()
        except BaseException:
            self.ring.give_back(place)
            raise
        self._busy.append((mark, place))

    def _retire(self) -> None:
        """Wait for the oldest slot on the device and give its place back."""
        mark, place = self._busy.popleft()
        try:
            mark.synchronize()
        finally:
            self.ring.give_back(place)

    def _hand_over(self, pending: PendingOnDevice, gathered: list[_Launched]) -> None:
        """Queue the merging of all results, which copies them to the host when they are there.

        The merging thread copies them into ordinary memory: pinning some takes longer than that, in this thread.
        """
        with self.streams.computing():
            flat = [result.reshape(-1) for launched in gathered for result in launched.results]
            there = torch.cat(flat) if flat else torch.zeros(0)
            mark = self.streams.mark()
        slots = [(launched.slot, launched.error) for launched in gathered]
        self._parts.acquire()
        merge = self._merger.submit(pending.merge, slots, there, mark)
        merge.add_done_callback(lambda done: self._parts.release())
        pending.merges.append(merge)

    def _recover(self, error: Exception) -> None:
        """After a failure of the device: all places are free again, and unless only memory was missing, it is over."""
        self._note(error)
        self._drain()
        if self._broken is None:
            try:
                self.streams.free_memory()
            except Exception as again:  # noqa: BLE001  nothing may end this thread: others wait for what it launches
                self._note(again)

    def _drain(self) -> None:
        """Wait until the device is through with every place."""
        while self._busy:
            try:
                self._retire()
            except Exception as error:  # noqa: BLE001  the place was given back all the same
                self._note(error)

    def _note(self, error: Exception) -> None:
        """Remember what the device failed with, unless only memory was missing."""
        if self._broken is None and not isinstance(error, torch.OutOfMemoryError | CancelledError):
            self._broken = error
            self.ring.abandon()


class PendingOnDevice:
    """A plan on its way. Faults of files become notices of its result."""

    def __init__(self, plan: Plan, engine: DeviceEngine) -> None:
        self._plan, self._engine = plan, engine
        self._files = OpenFiles(plan)
        self._failed: set[int] = set()
        self._error: Exception | None = None
        self._collector = Collector(plan)
        self._number = 0
        self.launched = threading.Event()
        self.merges: list[Future[None]] = []
        self.reads = deque(self._read(number) for number in range(len(plan)))

    def result(self) -> Reduction:
        """Wait for the last slot; on the CPU where the device failed."""
        self.launched.wait()
        try:
            for merge in self.merges:
                merge.result()
        except Exception as error:  # noqa: BLE001  a copy that failed shows where it is waited for
            self._error = self._error or error
        self._files.close()
        if self._error is not None:
            return self._engine.redo(self._plan, self._error)
        return self._collector.finish(self._engine.backend.name)

    def done(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return self.launched.is_set() and all(merge.done() for merge in self.merges)

    def give_up(self, error: Exception) -> None:
        """Nothing more will be launched: what was read beyond is dropped, and what was not is not read."""
        self._error = error
        self._engine.ring.look_again()
        for read in self.reads:
            read.add_done_callback(self._drop)
        self.launched.set()

    def merge(self, slots: list[tuple[Slot | None, CheckpointError | None]], there: torch.Tensor, mark: Mark) -> None:
        """On the merging thread: take in the results of the next slots in plan order."""
        self._engine.streams.enter_thread()
        mark.synchronize()  # after it any stream may read them
        figures: FLOAT32 = there.cpu().numpy()
        for slot, error in slots:
            self._engine.require_open()
            if error is not None:
                self._collector.fail(self._number, error)
            elif slot is None:
                self._collector.skip(self._number)
            else:
                figures = self._add(slot, figures)
            self._number += 1

    def _add(self, slot: Slot, figures: FLOAT32) -> FLOAT32:
        """Take in one slot from the front of ``figures``; gives the rest."""
        results: list[Reduced] = []
        for batch in slot.batches:
            result, figures = taken_in(batch, figures)
            results += [] if result is None else [result]
        trusted = len(results) == len(slot.batches)
        try:
            self._collector.add(slot, results if trusted else self._engine.reduce_on_cpu(slot, self._plan))
        except CheckpointError as error:
            self._collector.fail(self._number, error)
        return figures

    def _read(self, number: int) -> Future[Filled | None]:
        file = int(self._plan.file[number])
        path = self._plan.paths[file]
        read = self._engine.readers.read(
            self._plan, number, self._files, lambda: self._error is None and file not in self._failed
        )

        def note(done: Future[Filled | None]) -> None:
            if done.cancelled():
                self._files.done(path)
            elif done.exception() is not None:
                self._failed.add(file)

        read.add_done_callback(note)
        return read

    def _drop(self, read: Future[Filled | None]) -> None:
        """Give back the place of a slot that nobody will launch."""
        if not read.cancelled() and read.exception() is None and (filled := read.result()) is not None:
            self._engine.ring.give_back(filled.place)


def launched_kernels(backend: DeviceBackend, there: torch.Tensor, start: int, batch: Batch) -> list[torch.Tensor]:
    """Queue the kernels of a batch whose slot begins at byte ``start`` of ``there``: rows [chunks, 8] and sums [tiles,
    TILE_COLUMNS], float32, on the device."""
    moved = replace(batch.rectangles, offset=batch.rectangles.offset + start)
    chunks, tiles = _chunks_and_tiles(moved, batch.dtype)
    rows = backend.moments_there(there, chunks, batch.dtype)
    return [rows, backend.column_energies_there(there, tiles, batch.dtype) if len(tiles) else rows[:0, :0]]


def taken_in(batch: Batch, figures: FLOAT32) -> tuple[Reduced | None, FLOAT32]:
    """A batch merged out of the front of ``figures``, float32, its rows and then its sums; None where float32 could not
    hold them. Gives the rest of them too."""
    chunks, tiles = _chunks_and_tiles(batch.rectangles, batch.dtype)
    border = len(chunks) * len(ROW_FIELDS)
    end = border + len(tiles) * TILE_COLUMNS
    rows = figures[:border].reshape(-1, len(ROW_FIELDS)).astype(np.float64)
    sums = figures[border:end].reshape(-1, TILE_COLUMNS).astype(np.float64)
    trusted = trusted_rows(rows).all() and trusted_tiles(sums, tiles).all()
    return reduced(batch.rectangles, rows, chunks.count, sums) if trusted else None, figures[end:]


def _chunks_and_tiles(rectangles: Rectangles, dtype: str) -> tuple[Chunks, Tiles]:
    """What the two kernels are given."""
    itemsize = ITEMSIZE[dtype]
    by_column = chosen(rectangles, rectangles.axis == COLUMN_ENERGY)
    return chunk_rectangles(rectangles, itemsize), tile_rectangles(by_column, itemsize)
