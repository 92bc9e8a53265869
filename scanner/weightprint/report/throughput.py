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
            "gigabytes_per_second": found.night_rate,
            "attention_bytes": found.night_bytes,
            "checkpoints_of_8b": found.night_bytes / EIGHT_BILLION,
        },
        "machine": found.machine,
    }


def throughput_view(found: Throughput) -> RenderableType:
    """Kernels against their limit, reading against its limit, and a night at that rate."""
    kernels = Table("kernel", "dtype", "work", "threads", "GB/s", "limit", "share")
    for kernel in found.kernels:
        speeds = (f"{kernel.gigabytes_per_second:.1f}", f"{kernel.limit:.1f}", f"{kernel.share:.2f}")
        kernels.add_row(kernel.backend, kernel.dtype, kernel.work, str(kernel.threads), *speeds)
    reading = found.reading
    rows = Table("reading", "GB/s", "of the limit")
    rows.add_row(f"as it lay there ({reading.resident:.0%} in the page cache)", f"{reading.first:.2f}", "")
    rows.add_row("again", f"{reading.again:.2f}", f"{reading.again / reading.limit:.2f}")
    rows.add_row("limit: every 8 bytes looked at", f"{reading.limit:.2f}", "")
    night = size(round(found.night_bytes))
    number = f"{found.night_bytes / EIGHT_BILLION:,.0f}"
    return Group(
        kernels,
        Text(f"{size(reading.size)} of attention in {printable(reading.path)}, by {printable(reading.engine)}"),
        rows,
        Text(
            f"{NIGHT_HOURS} hours at {found.night_rate:.2f} GB/s are {night} of attention, what some {number} "
            "checkpoints of 8 billion parameters have in bf16"
        ),
        Text("weights that lie elsewhere come as fast as their storage gives them: name it as PATH", style="dim"),
    )
