"""What each stage of a scan costs, one after the other on one thread: where the time goes.

On the CPU a slot is planned, mapped, reduced and merged. On a device it is read into pinned memory (storage and host
copy in one), copied over the link, reduced there, and its results come back to be merged; the device is waited for
after each stage, so the sum is what a scan would take without overlapping anything.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from weightprint.engine.collect import Collector
from weightprint.engine.files import OpenFiles, bytes_of, read_slot
from weightprint.engine.ring import ALIGNMENT
from weightprint.engine.streams import Streams
from weightprint.plan import Plan
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.compute import chosen, reduce, reduced
from weightprint_kernels.layout import COLUMN_ENERGY, ITEMSIZE, chunk_rectangles, tile_rectangles


@dataclass
class Laps:
    """Seconds by stage: each lap is what passed since the lap before."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    since: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.since
        self.since = now


def stages_on_cpu(plan: Plan, backend: Backend) -> dict[str, float]:
    """Seconds of each stage of the CPU's engine."""
    files, collector, laps = OpenFiles(plan), Collector(plan), Laps()
    for number in range(len(plan)):
        slot = plan.slot(number)
        laps.lap("plan slot")
        with ExitStack() as stack:
            data = stack.enter_context(bytes_of(slot, stack.enter_context(files.using(slot.path))))
            laps.lap("open and map")
            buffer = backend.place(data)
            laps.lap("map pages")
            results = [reduce(backend, data, buffer, batch.rectangles, batch.dtype) for batch in slot.batches]
            laps.lap("kernel")
            del data, buffer
        laps.lap("unmap")
        collector.add(slot, results)
        laps.lap("merge")
    collector.finish(backend.name)
    laps.lap("merge")
    return dict(laps.seconds)


def stages_on_device(plan: Plan, backend: DeviceBackend, streams: Streams) -> dict[str, float]:
    """Seconds of each stage of a device's engine, the device waited for after each."""
    import torch

    streams.enter_thread()
    files, collector = OpenFiles(plan), Collector(plan)
    host = streams.allocate_host(int(plan.length.max()) + ALIGNMENT)
    there = torch.empty_like(host, device=backend.device)
    laps = Laps()
    for number in range(len(plan)):
        slot = plan.slot(number)
        laps.lap("plan slot")
        start = slot.offset % ALIGNMENT
        span = slice(start, start + slot.length)
        with files.using(slot.path) as descriptor:
            read_slot(slot, descriptor, host[span].numpy())
        laps.lap("read")
        streams.copy(there[span], host[span])
        streams.mark().synchronize()
        laps.lap("copy to the device")
        on_device, tables = [], []
        with streams.computing():
            for batch in slot.batches:
                moved = replace(batch.rectangles, offset=batch.rectangles.offset + start)
                chunks = chunk_rectangles(moved, ITEMSIZE[batch.dtype])
                by_column = chosen(moved, moved.axis == COLUMN_ENERGY)
                tiles = tile_rectangles(by_column, ITEMSIZE[batch.dtype])
                rows = backend.moments_there(there, chunks, batch.dtype)
                sums = backend.column_energies_there(there, tiles, batch.dtype) if len(tiles) else rows[:0, :0]
                on_device.append((rows, sums))
                tables.append((batch.rectangles, chunks.count))
        streams.mark().synchronize()
        laps.lap("kernel")
        results = [(rows.cpu().numpy(), sums.cpu().numpy()) for rows, sums in on_device]
        laps.lap("results to the host")
        collector.add(
            slot,
            [
                reduced(rectangles, rows.astype(np.float64), counts, sums.astype(np.float64))
                for (rectangles, counts), (rows, sums) in zip(tables, results, strict=True)
            ],
        )
        laps.lap("merge")
    collector.finish(backend.name)
    laps.lap("merge")
    return dict(laps.seconds)
