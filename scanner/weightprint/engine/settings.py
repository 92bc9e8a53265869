"""What may be set about reading, and what measurements made the default."""

from __future__ import annotations

import os
from dataclasses import dataclass

from weightprint.errors import UsageError

MOST_THREADS = 12
"""On one machine: with slots of 16 MiB they keep the mapped memory below 192 MiB."""


@dataclass(frozen=True)
class Settings:
    """``threads`` read (and, on the CPU, reduce) slots side by side; default one for each processor."""

    threads: int


def read_settings() -> Settings:
    """The settings of the environment; raises UsageError E_USAGE."""
    return Settings(threads=_whole("WEIGHTPRINT_THREADS", min(processors(), MOST_THREADS), 1, 256))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UsageError("E_USAGE", f"{name} is {text!r}; it must be a whole number from {least} to {most}")
    return int(text)
