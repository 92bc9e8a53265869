"""What ``weightprint bench`` found, for programs and for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from weightprint.report.text import printable, size
from weightprint.throughput.bench import EIGHT_BILLION, NIGHT_HOURS, Throughput

BENCH_SCHEMA = "weightprint.bench/1"


def throughput_document(found: Throughput) -> dict[str, Any]:
    """``bench --json``; rates in GB/s."""
    return {
        "schema": BENCH_SCHEMA,
        "kernels": [{**asdict(kernel), "share": kernel.share} for kernel in found.kernels],
        "reading": asdict(found.reading),
        "night": {
            "hours": NIGHT_HOURS,
            "source": found.night_source,
            "gigabytes_per_second": found.night_rate,
            "attention_bytes": found.night_bytes,
            "checkpoints_of_8b": found.night_bytes / EIGHT_BILLION,
        },
        "machine": found.machine,
    }


def throughput_view(found: Throughput) -> RenderableType:
    """Kernels against their limit, reading against its limit, and a night at that rate."""
    kernels = _table("kernel", "dtype", "work", "threads", "GB/s", "limit", "share")
    for kernel in found.kernels:
        speeds = (f"{kernel.gigabytes_per_second:.1f}", f"{kernel.limit:.1f}", f"{kernel.share:.2f}")
        kernels.add_row(kernel.backend, kernel.dtype, kernel.work, str(kernel.threads), *speeds)
    reading = found.reading
    rows = _table("reading", "GB/s", "share")
    rows.add_row(f"as it lay there ({reading.resident:.0%} in the page cache)", f"{reading.first:.2f}", "")
    rows.add_row("again", f"{reading.again:.2f}", f"{reading.again / reading.limit:.2f}")
    rows.add_row("limit", f"{reading.limit:.2f}", "")
    where = "a checkpoint made for this" if found.own else printable(reading.path)
    return Group(
        kernels,
        Text(LIMIT, style="dim"),
        Text(""),
        Text(f"{size(reading.size)} of attention in {where}, by {printable(reading.engine)}"),
        rows,
        Text(_night(found)),
        *([Text("weightprint bench DIR measures the storage of DIR", style="dim")] if found.own else []),
    )


LIMIT = (
    "limit: every 8 bytes looked at by as many threads, on a GPU a copy on it; a kernel that asks for bytes ahead can "
    "pass it"
)


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def _night(found: Throughput) -> str:
    """What a night could scan, and what that rests on."""
    if found.night_source is None:
        return f"{size(found.reading.size)} are too little to say what a night could scan"
    number = f"{found.night_bytes / EIGHT_BILLION:,.0f}"
    scanned = (
        f"{NIGHT_HOURS} hours at {found.night_rate:.2f} GB/s are {size(round(found.night_bytes))} of attention, what "
        f"some {number} checkpoints of 8 billion parameters have in bf16"
    )
    caution = "; this is the rate of the page cache: a night's checkpoints come as fast as their storage gives them"
    return scanned if found.night_source == "storage" else scanned + caution
