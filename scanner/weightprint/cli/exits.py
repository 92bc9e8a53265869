"""Exit codes, and how an interruption or an error becomes one."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from types import FrameType

from weightprint.errors import DeviceError, UsageError, WeightprintError

DONE = 0
INTERNAL = 1
USAGE = 2
INCOMPLETE = 3
FINDING = 10
NOTHING = 11

EXIT_CODES = {
    DONE: "done",
    INTERNAL: "internal error: a bug",
    USAGE: "wrong usage, or a device or store that cannot be used",
    INCOMPLETE: "done, but something could not be analysed or written (unless --allow-incomplete)",
    FINDING: "a finding at or above --fail-on; wins over 3",
    NOTHING: "nothing to scan",
    130: "interrupted by Ctrl-C; results kept, resumable",
    143: "terminated; results kept, resumable",
}

SEVERITY = ("similar-profile", "shared-origin", "re-encoded", "identical")
"""Verdicts that --fail-on can name, weakest first."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception: nothing on the way up may take it for a fault of a checkpoint."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(number)


def interrupt_on_signals() -> None:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`, so that the exit code tells them apart."""
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Another one within a second would only break off what is said of the first; a later one counts again.
        nonlocal last
        now = time.monotonic()
        if now - last >= 1:
            last = now
            raise Interrupted(number)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def exit_code_of(error: WeightprintError) -> int:
    """The exit code of an error that ended a command."""
    if error.code == "E_NO_CHECKPOINT":
        return NOTHING
    return USAGE if isinstance(error, UsageError | DeviceError) or error.code == "E_STORE" else INCOMPLETE


def exit_code(verdicts: Sequence[str], fail_on: str | None, incomplete: bool) -> int:
    """The exit code of a finished scan or comparison."""
    if fail_on is not None:
        findings = SEVERITY[SEVERITY.index(fail_on) :]
        if any(verdict in findings for verdict in verdicts):
            return FINDING
    return INCOMPLETE if incomplete else DONE
