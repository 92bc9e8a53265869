"""What each stage of a scan costs, one after the other on one thread: where the time goes.

On the CPU a slot is planned, mapped, reduced and merged. On a device it is read into pinned memory (storage and host
copy in one), copied over the link, reduced there, and its results come back to be merged; the device is waited for
after each stage, so the sum is what a scan would take without overlapping anything.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field

from weightprint.engine.collect import Collector
from weightprint.engine.files import OpenFiles, bytes_of, read_slot
from weightprint.engine.ring import ALIGNMENT
from weightprint.engine.streams import Streams
from weightprint.plan import Plan
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.compute import reduce
from weightprint_kernels.layout import Reduced


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

    from weightprint.engine.device import launched_kernels, taken_in

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
        with streams.computing():
            results = [one for batch in slot.batches for one in launched_kernels(backend, there, start, batch)]
            flat = torch.cat([result.reshape(-1) for result in results])
        streams.mark().synchronize()
        laps.lap("kernel")
        figures = flat.cpu().numpy()
        laps.lap("results to the host")
        merged: list[Reduced] = []
        for batch in slot.batches:
            result, figures = taken_in(batch, figures)
            merged += [] if result is None else [result]
        if len(merged) == len(slot.batches):
            collector.add(slot, merged)
        else:
            collector.skip(number)  # the engine would read it again
        laps.lap("merge")
    collector.finish(backend.name)
    laps.lap("merge")
    return dict(laps.seconds)
