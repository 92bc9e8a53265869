"""The engine of the CPU: threads over slots, of several checkpoints at once, so that no core waits between them.

A thread takes a slot, maps its bytes, reduces them while it holds no lock, and hands over some kilobytes. Memory is one
slot a thread, whatever the size of the checkpoints. A file that cannot be read to its end costs the matrices that lie
in it, from the fault on, and a notice; the other files go on.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from weightprint.engine.collect import Collector, Reduction
from weightprint.engine.files import OpenFiles, bytes_of
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, Slot
from weightprint_kernels.backend import Backend
from weightprint_kernels.compute import reduce
from weightprint_kernels.layout import Reduced

Result = tuple[Slot, list[Reduced]]


class CpuEngine:
    """Carries out plans on ``threads`` threads. Use it as a context: leaving it gives up what is not done."""

    def __init__(self, backend: Backend, threads: int, description: str = "") -> None:
        self.backend = backend
        self.description = description
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="weightprint-reader")

    def __enter__(self) -> CpuEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, plan: Plan) -> PendingOnCpu:
        """Queue the slots of ``plan`` behind those that wait already."""
        return PendingOnCpu(plan, self.backend, self._pool)


class PendingOnCpu:
    """A plan on its way. Faults of files become notices of its result; any other fault is raised by it."""

    def __init__(self, plan: Plan, backend: Backend, pool: ThreadPoolExecutor) -> None:
        self._plan, self._backend = plan, backend
        self._files = OpenFiles(plan)
        self._failed: set[int] = set()
        self._collector = Collector(plan)
        self._number = 0
        self._left = deque(pool.submit(self._reduce, number) for number in range(len(plan)))
        for number, future in enumerate(self._left):
            future.add_done_callback(partial(self._given_up, number))

    def _given_up(self, number: int, future: Future[Result | None]) -> None:
        """A slot that was cancelled needs its file no longer."""
        if future.cancelled():
            self._files.done(self._plan.paths[self._plan.file[number]])

    def result(self) -> Reduction:
        """Wait for the last slot."""
        try:
            while self._left:
                self._collect(self._left.popleft())
        finally:
            for future in self._left:
                future.cancel()
            wait(self._left)
            self._files.close()
        return self._collector.finish(self._backend.name)

    def done(self) -> bool:
        """Whether :meth:`result` would not wait; takes in what is ready."""
        while self._left and self._left[0].done():
            if self._fault(self._left[0]):
                return True
            self._collect(self._left.popleft())
        return not self._left

    @staticmethod
    def _fault(future: Future[Result | None]) -> bool:
        """Whether a slot failed for another reason than its file."""
        error = future.exception()
        return error is not None and not isinstance(error, CheckpointError)

    def _collect(self, future: Future[Result | None]) -> None:
        """Take in the next slot in plan order."""
        try:
            result = future.result()
        except CheckpointError as error:
            self._collector.fail(self._number, error)
        else:
            if result is None:
                self._collector.skip(self._number)
            else:
                self._collector.add(*result)
        self._number += 1

    def _reduce(self, number: int) -> Result | None:
        """On a thread: read and reduce one slot; None where its file has failed already."""
        slot = self._plan.slot(number)
        file = int(self._plan.file[number])
        if file in self._failed:
            self._files.done(slot.path)
            return None
        try:
            with self._files.using(slot.path) as descriptor, bytes_of(slot, descriptor) as data:
                buffer = self._backend.place(data)
                reduced = [reduce(self._backend, data, buffer, batch.rectangles, batch.dtype) for batch in slot.batches]
                del buffer, data
            return slot, reduced
        except CheckpointError:
            self._failed.add(file)
            raise


def reduce_plan(plan: Plan, backend: Backend, threads: int = 1) -> Reduction:
    """Carry out one plan on ``backend``."""
    with CpuEngine(backend, threads) as engine:
        return engine.submit(plan).result()
