"""The ring and its readers: places in the order of turns, none lost and none given twice. Nothing here may hang."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from engine_cases import Files, matrix

from weightprint.engine.files import OpenFiles
from weightprint.engine.ring import ALIGNMENT, Filled, Place, Readers, Ring, stay_on, staying_on
from weightprint.engine.streams import HostStreams
from weightprint.errors import CheckpointError
from weightprint.plan import Plan, plan_reads

NOWHERE: frozenset[int] = frozenset()
FIVE_SECONDS = 5


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for: a test that failed may have left them waiting."""
    threads = ThreadPoolExecutor(8)
    yield threads
    threads.shutdown(wait=False)


def ring_of(slots: int, slot_bytes: int = 100) -> Ring:
    return Ring(HostStreams(), "cpu", slots, slot_bytes, NOWHERE)


def always() -> bool:
    return True


def never() -> bool:
    return False


def taken(ring: Ring, turn: int) -> Place:
    place = ring.take(turn, always)
    assert place is not None
    return place


def until(ready: Callable[[], bool]) -> None:
    """Wait for what other threads are about to do; a deadline, and nothing is measured."""
    for _ in range(1000 * FIVE_SECONDS):
        if ready():
            return
        time.sleep(0.001)
    pytest.fail("it did not happen")


def waiting(ring: Ring, turns: set[int]) -> None:
    until(lambda: set(ring._waiting) == turns)


@pytest.mark.parametrize("slot_bytes", [1, 15, 16, 17, 50, 1000, 2**20])
def test_places_are_aligned_and_apart(slot_bytes: int) -> None:
    """A slot fits wherever it begins modulo ALIGNMENT, whatever its size, and the next place is as aligned."""
    ring = ring_of(3, slot_bytes)
    places = [taken(ring, turn) for turn in range(3)]
    for side in ("host", "there"):
        buffers = [getattr(place, side) for place in places]
        starts = sorted((buffer.data_ptr(), len(buffer)) for buffer in buffers)
        assert all(start % ALIGNMENT == starts[0][0] % ALIGNMENT for start, _ in starts)
        assert all(size >= slot_bytes + ALIGNMENT - 1 for _, size in starts)
        assert all(first + size <= second for (first, size), (second, _) in pairwise(starts))
        assert all(buffer.storage_offset() % ALIGNMENT == 0 for buffer in buffers)


def test_turns_are_served_in_order(pool: ThreadPoolExecutor) -> None:
    """Whoever asks first."""
    ring = ring_of(1)
    place = taken(ring, 0)
    order: list[int] = []

    def take(turn: int) -> None:
        got = taken(ring, turn)
        order.append(turn)
        ring.give_back(got)

    late = [pool.submit(take, turn) for turn in (3, 2, 4)]
    waiting(ring, {2, 3, 4})
    ring.give_back(place)
    assert not any(future.done() for future in late)
    pool.submit(take, 1).result(FIVE_SECONDS)
    for future in late:
        future.result(FIVE_SECONDS)
    assert order == [1, 2, 3, 4]


def test_only_the_reader_whose_turn_it_is_wakes(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ring is full all of them wait, and every place that came back would wake them all."""
    ring = ring_of(2)
    first, second = taken(ring, 0), taken(ring, 1)
    readers = [pool.submit(ring.take, turn, always) for turn in (2, 3, 4, 5)]
    waiting(ring, {2, 3, 4, 5})
    woken: list[int] = []

    def note(turn: int, notify: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            woken.append(turn)
            notify()

        return noted

    for turn, changed in ring._waiting.items():
        monkeypatch.setattr(changed, "notify", note(turn, changed.notify))
    ring.give_back(first)
    assert readers[0].result(FIVE_SECONDS) is first
    assert woken == [2, 3]
    ring.close()
    assert [reader.result(FIVE_SECONDS) for reader in readers[1:]] == [None] * 3
    ring.give_back(second)


def test_waiting_for_a_place_is_counted(pool: ThreadPoolExecutor) -> None:
    """Only that: a place that is free costs no time worth naming."""
    ring = ring_of(1)
    first = taken(ring, 0)
    at_once = ring.stalls.slot_starved
    late = pool.submit(ring.take, 1, always)
    waiting(ring, {1})
    began = time.perf_counter()
    time.sleep(0.02)
    waited = time.perf_counter() - began
    ring.give_back(first)
    assert late.result(FIVE_SECONDS) is not None
    assert ring.stalls.slot_starved >= at_once + waited
    assert ring.stalls.reader_starved == 0


def test_what_is_not_wanted_passes_on_the_turn(pool: ThreadPoolExecutor) -> None:
    """With a place free and without, and also where that turns out while it waits."""
    ring = ring_of(1)
    assert ring.take(0, never) is None
    place = taken(ring, 1)
    assert ring.take(2, never) is None
    wanted = threading.Event()
    wanted.set()
    reader = pool.submit(ring.take, 3, wanted.is_set)
    waiting(ring, {3})
    ring.look_again()
    wanted.clear()
    ring.look_again()
    assert reader.result(FIVE_SECONDS) is None
    ring.give_back(place)
    assert ring.take(4, always) is place


def test_a_closed_ring_has_no_places(pool: ThreadPoolExecutor) -> None:
    """For those that wait, whatever their turn, and for those that come."""
    ring = ring_of(1)
    place = taken(ring, 0)
    readers = [pool.submit(ring.take, turn, always) for turn in (1, 2, 7)]
    waiting(ring, {1, 2, 7})
    ring.close()
    assert [reader.result(FIVE_SECONDS) for reader in readers] == [None] * 3
    ring.give_back(place)
    assert ring.take(3, always) is None


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [1, 2, 3, 12])
def test_places_go_round(pool: ThreadPoolExecutor, slots: int, readers: int) -> None:
    """Launched in order, as the engine does, with every third slot no longer wanted."""
    ring = ring_of(slots)
    with ThreadPoolExecutor(readers) as threads:
        turns = deque(threads.submit(ring.take, turn, never if turn % 3 == 1 else always) for turn in range(200))
        out: list[Place] = []
        for turn in range(200):
            if len(out) == slots:
                ring.give_back(out.pop(0))
            place = turns.popleft().result(FIVE_SECONDS)
            assert (place is None) == (turn % 3 == 1)
            out += [place] if place is not None else []
            assert len({id(one) for one in out}) == len(out)
    assert len(out) + len(ring._free) == slots


def plan_in(folder: Path, lead: int = 3) -> tuple[Plan, bytes]:
    """Slots of one row to a dozen, and the bytes of their file."""
    files = Files(folder, "bf16", lead)
    parts = []
    for rows, columns in ((5, 7), (1, 100), (13, 11), (40, 9)):
        spec, values = files.add(files.random(rows, columns), gap=300)
        parts.append(matrix("q", values, [(spec, ((0, rows),))]).matrix)
    files.write()
    return plan_reads(parts, 200), (folder / "a").read_bytes()


def results(reads: list[Future[Filled | None]]) -> list[Filled | None]:
    return [read.result(FIVE_SECONDS) for read in reads]


def test_readers_fill_places(tmp_path: Path) -> None:
    """With the bytes of the file, which keep their place modulo ALIGNMENT; the file is closed after its last slot."""
    plan, content = plan_in(tmp_path)
    ring = ring_of(len(plan), 200)
    readers = Readers(ring, 3, NOWHERE)
    files = OpenFiles(plan)
    filled = results([readers.read(plan, number, files, always) for number in range(len(plan))])
    readers.close()
    for number, one in enumerate(filled):
        assert one is not None
        assert (one.slot.offset, one.slot.length) == (plan.offset[number], plan.length[number])
        assert one.start % ALIGNMENT == one.slot.offset % ALIGNMENT
        span = slice(one.start, one.start + one.slot.length)
        assert bytes(one.place.host[span].numpy()) == content[one.slot.offset : one.slot.offset + one.slot.length]
    assert files._descriptors == {}
    assert len({one.start for one in filled if one}) > 3


def test_a_reader_that_fails_gives_its_place_back(tmp_path: Path) -> None:
    """So two places are enough for many that fail, and for the one that does not want any more."""
    plan, _ = plan_in(tmp_path)
    os.truncate(tmp_path / "a", int(plan.offset[1]) + 1)
    ring = ring_of(2, 200)
    readers = Readers(ring, 2, NOWHERE)
    files = OpenFiles(plan)
    reads = [readers.read(plan, number, files, always) for number in range(len(plan) - 1)]
    last = readers.read(plan, len(plan) - 1, files, never)
    assert reads[0].result(FIVE_SECONDS) is not None
    for read in reads[1:]:
        with pytest.raises(CheckpointError, match="ends at byte"):
            read.result(FIVE_SECONDS)
    assert last.result(FIVE_SECONDS) is None
    readers.close()
    assert len(ring._free) == 1
    assert files._descriptors == {}


def test_closing_gives_up_what_is_queued(tmp_path: Path) -> None:
    """Also what waits for a place that will not come."""
    plan, _ = plan_in(tmp_path)
    ring = ring_of(1, 200)
    readers = Readers(ring, 2, NOWHERE)
    files = OpenFiles(plan)
    reads = [readers.read(plan, number, files, always) for number in range(len(plan))]
    assert reads[0].result(FIVE_SECONDS) is not None
    waiting(ring, {1, 2})
    readers.close()
    assert [read.result(FIVE_SECONDS) for read in reads[1:3]] == [None, None]
    assert all(read.cancelled() for read in reads[3:])
    files.close()


PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="there is one processor, or none is told of")
def test_readers_stay_near_the_device(tmp_path: Path) -> None:
    """And no other thread does; a place is where it was first touched, which is near too."""
    one = frozenset(PROCESSORS[:1])
    seen: list[set[int]] = []

    class Noting(HostStreams):
        def allocate_host(self, size: int) -> torch.Tensor:
            seen.append(os.sched_getaffinity(0))
            return super().allocate_host(size)

    plan, _ = plan_in(tmp_path)
    ring = Ring(Noting(), "cpu", 2, 200, one)
    assert os.sched_getaffinity(0) == set(PROCESSORS)
    readers = Readers(ring, 1, one)
    files = OpenFiles(plan)

    def wanted() -> bool:
        seen.append(os.sched_getaffinity(0))
        return True

    readers.read(plan, 0, files, wanted).result(FIVE_SECONDS)
    readers.close()
    files.close()
    assert len(seen) > 1
    assert all(own == one for own in seen)
    assert os.sched_getaffinity(0) == set(PROCESSORS)


@pytest.mark.skipif(not PROCESSORS, reason="no processors are told of")
@pytest.mark.parametrize("processors", [NOWHERE, frozenset({4000})], ids=["none", "not-ours"])
def test_processors_that_are_not_ours_change_nothing(pool: ThreadPoolExecutor, processors: frozenset[int]) -> None:
    def affinity() -> set[int]:
        stay_on(processors)
        with staying_on(processors):
            return os.sched_getaffinity(0)

    assert pool.submit(affinity).result(FIVE_SECONDS) == set(PROCESSORS)


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="there is one processor, or none is told of")
def test_staying_ends_with_a_fault(pool: ThreadPoolExecutor) -> None:
    def affinity() -> set[int]:
        with pytest.raises(MemoryError), staying_on(frozenset(PROCESSORS[:1])):
            raise MemoryError
        return os.sched_getaffinity(0)

    assert pool.submit(affinity).result(FIVE_SECONDS) == set(PROCESSORS)
