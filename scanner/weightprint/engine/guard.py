"""Truncated files and failing disks under a memory map: the fault is noted, and the process lives on.

Touching a mapped page that its file no longer has, or that the disk cannot give, raises SIGBUS, which kills the process
and a night's work with it. The handler here puts zero pages in the place of what is missing, so that the loop that
touched them comes to its end, and marks the window; whoever holds the window then throws its result away.

The handler is compiled, takes no lock and calls nothing but ``mmap`` and ``sigaction``. A fault outside the windows is
given back to whoever had the signal before. 64-bit Linux only: elsewhere nothing is mapped, and files are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from weightprint_kernels.layout import INT64
from weightprint_kernels.select import numba_refusal

WINDOWS = 512
"""How many windows can be open at once: twice as many as there may be reading threads."""

TABLE, PREVIOUS = "weightprint_guarded_windows", "weightprint_previous_sigbus"
"""Names under which the compiled handler finds the windows and the action that the signal had before."""

SIGINFO, ONSTACK, RESTART = 0x4, 0x08000000, 0x10000000  # flags of sigaction


class _Action(ctypes.Structure):
    """struct sigaction of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Guard:
    """The windows that are open, int64 [WINDOWS, 3]: first address, one past the last, whether a page was missing."""

    def __init__(self, table: INT64, previous: ctypes.Structure) -> None:
        self._table = table
        self._previous = previous  # the handler refers to it as long as the process lives
        self._free = list(range(WINDOWS))
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watch(self, address: int, length: int) -> Iterator[Callable[[], bool]]:
        """Watch whole pages from ``address``; gives a function that says whether one of them was missing."""
        with self._lock:
            row = self._free.pop()
        try:
            # The handler may look at any moment: a row without an end is no window.
            self._table[row, 2] = 0
            self._table[row, 0] = address
            self._table[row, 1] = address + length
            yield lambda: bool(self._table[row, 2])
        finally:
            self._table[row, 1] = 0
            with self._lock:
                self._free.append(row)


_ONE_AT_A_TIME = threading.Lock()


def installed_guard() -> Guard | None:
    """The process's guard, its handler in place; None where there can be none."""
    with _ONE_AT_A_TIME:  # the cache alone would let two threads install two
        return _install()


@functools.cache
def _install() -> Guard | None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or sys.maxsize < 2**32:
        return None
    if numba_refusal() is not None:
        return None
    from llvmlite.binding import add_symbol

    table, previous = np.zeros((WINDOWS, 3), np.int64), _Action()
    add_symbol(TABLE, table.ctypes.data)
    add_symbol(PREVIOUS, ctypes.addressof(previous))
    from weightprint.engine.sigbus_handler import on_missing_page  # finds the symbols when it is loaded

    action = _Action(handler=on_missing_page.address, flags=SIGINFO | ONSTACK | RESTART)
    library = ctypes.CDLL(None)
    if library.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(previous)) != 0:
        return None
    return Guard(table, previous)
